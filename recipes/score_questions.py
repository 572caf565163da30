"""pass@k of a model on each question, spoken and written: what to train on, and in which order.

    accelerate launch recipes/score_questions.py --model recipes/demo/tiny-omni --dataset recipes/demo/questions
        --max_completion_length 64 --keep learnable --output_dir runs/scored    # one line

`tars-trl score-questions` does the same; see `--help`.
"""

from tars_trl.commands.score_questions import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
