r"""Ask a speech LLM a question, spoken or written, and read its answer as it comes.

    tars-trl chat --model runs/mine --audio question.wav
    tars-trl chat --model BASE --adapter runs/mine \
        --audio france.wav --text "What is the capital of France? Option A: Lyon. Option B: Paris."

The system prompt is the one of the model's training. Given both forms it answers twice, once from each twin's prompt,
and prints the answers side by side. In the browser instead, to record a question, and to compare with the model before
training:

    tars-trl chat --model runs/mine --web
"""

import shutil
import textwrap
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from transformers import TextStreamer

from ..data import SYSTEM_PROMPT, build_prompt
from ..data.audio import TARGET_RATE, load_audio
from ..data.prompts import MODALITIES
from ..errors import SettingError
from ..record import read_run
from ..sampling.complete import complete, decoding
from ..sampling.shared import model_loader, start_processes
from ..settings import AskedModelSettings, DecodingSettings, parse, run, setting
from . import page


@dataclass
class ChatSettings(DecodingSettings, AskedModelSettings):
    """What is asked, of which model."""

    audio: str | None = setting(None, "File with the spoken question: wav, flac, ogg or mp3.")
    text: str | None = setting(None, "The written question.")
    system_prompt: str | None = setting(
        None, "System prompt. None: the one that the model's run was trained with, else the method's; '': none."
    )
    web: bool = setting(False, "Ask in the browser: record, upload or type (extra `web`).")
    host: str = setting("127.0.0.1", "Address that the page is served at; 0.0.0.0 lets other machines in, too.")
    port: int = setting(7860, "Its port.", least=1, most=65535)
    batch_size: int = field(default=1, init=False)  # one question

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.audio and not self.text and not self.web:
            raise SettingError(
                "audio and text are not given: there is no question. Pass --audio, --text, or both, or --web."
            )


def system_prompt_of(settings: ChatSettings) -> str:
    """The system prompt of the settings, or else the one that the model's run was trained with, which is printed."""
    if settings.system_prompt is not None:
        return settings.system_prompt
    folder = settings.adapter or settings.model or ""
    facts = read_run(folder)
    if "system_prompt" not in facts:
        return SYSTEM_PROMPT
    prompt = facts["system_prompt"] or ""
    print(f"System prompt, as {folder} was trained: {prompt!r}" if prompt else f"No system prompt, as for {folder}.")
    return prompt


def side_by_side(answers: dict[str, str], width: int) -> str:
    """The answers as columns of equal width, headed by their names."""
    column = (width - 3) // 2
    cells = []
    for name, text in answers.items():
        lines = [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, column) or [""]]
        cells.append([name, "-" * column, *lines])
    return "\n".join(f"{left:<{column}} | {right}" for left, right in zip_longest(*cells, fillvalue=""))


def main(args: list[str] | None = None) -> dict[str, str]:
    """Load the model, ask, print; the answers by modality."""
    (settings,) = parse(ChatSettings, args=args, description=__doc__)
    if settings.web:
        page.check_gradio()
    load = model_loader(settings)
    prompt = system_prompt_of(settings)
    row: dict[str, Any] = {"key": "chat", "prompt": build_prompt(settings.text or "(spoken)", prompt)}
    if settings.audio:  # read before the model is loaded
        row["audio"] = {"array": load_audio(settings.audio), "sampling_rate": TARGET_RATE}
    start_processes(settings.use_cpu)
    model, processor = load()
    if settings.web:
        page.serve(model, processor, prompt, decoding(settings), settings.host, settings.port)
        return {}
    answers: dict[str, str] = {}
    for modality, question in zip(MODALITIES, (settings.audio, settings.text), strict=True):
        if question:
            print(f"[{modality}]")
            streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            (done,) = complete(model, processor, [row], modality, streamer=streamer, **decoding(settings))
            answers[modality] = done.text
    if len(answers) == 2:
        print("\n" + side_by_side(answers, shutil.get_terminal_size().columns))
    return answers


if __name__ == "__main__":
    run(main)
