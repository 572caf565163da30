"""Ask a speech LLM a question, spoken or written, and read its answer as it comes.

    python recipes/chat.py --model runs/demo --audio runs/demo/question.ogg

`tars-trl chat` does the same; see `--help`.
"""

from tars_trl.commands.chat import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
