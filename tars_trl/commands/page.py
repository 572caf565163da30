"""The page of `tars-trl chat --web`: a question recorded, uploaded or typed; its twins' answers side by side.

Gradio serves it (extra `web`), to this machine alone unless `--host` says otherwise. Nothing is fetched from elsewhere
or sent there.
"""

import html
import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from threading import Thread
from typing import Any

from peft import PeftModel
from transformers import TextIteratorStreamer

from ..data import build_prompt
from ..data.audio import TARGET_RATE, load_audio
from ..data.prompts import MODALITIES, Modality
from ..errors import SettingError
from ..report.plots import COLORS
from ..sampling.complete import complete

NAMES = {"speech": "Heard", "text": "Read"}
STYLE = """
.reply { border-left: 4px solid; padding-left: .8rem; margin-bottom: 1rem; overflow-wrap: anywhere; }
.reply summary { cursor: pointer; opacity: .75; } .reply .thought { white-space: pre-wrap; opacity: .75; }
.reply .answer { font-size: 1.15rem; white-space: pre-wrap; margin: .3rem 0; } .reply .speed { opacity: .6; }
footer { display: none !important; }
"""


class CountingStreamer(TextIteratorStreamer):
    """Text as it comes, and how many tokens that were. The first thing that `generate` puts is the prompt."""

    tokens = -1

    def put(self, value: Any) -> None:
        """Take a token."""
        self.tokens += 1
        super().put(value)


def stream(
    model: Any, processor: Any, row: dict[str, Any], modality: Modality, trained: bool = True, **decoding: Any
) -> Iterator[tuple[str, int, float]]:
    """The answer so far, its tokens, and tokens a second, again and again until it is whole.

    Args:
        row: a question in the schema of `tars_trl.data`.
        trained: whether the model's adapter is on.
        decoding: of `complete`.

    Raises:
        Exception: whatever the model raised.
    """
    streamer = CountingStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    faults: list[BaseException] = []

    def generate() -> None:
        try:
            with nullcontext() if trained else model.disable_adapter():
                list(complete(model, processor, [row], modality, streamer=streamer, **decoding))
        except BaseException as fault:  # noqa: BLE001 # raised again where the page waits
            faults.append(fault)
            streamer.on_finalized_text("", stream_end=True)

    thread, start, text = Thread(target=generate, daemon=True), time.perf_counter(), ""
    thread.start()
    for piece in streamer:
        text += piece
        yield text, streamer.tokens, streamer.tokens / (time.perf_counter() - start)
    thread.join()
    if faults:
        raise faults[0]


def reply_html(heading: str, modality: str, text: str, tokens: int, speed: float) -> str:
    """One answer: its reasoning folded, the choice, and how fast it came; all text escaped."""
    thought, closed, rest = re.sub(r"^\s*<think>", "", text).partition("</think>")
    if not closed and not text.lstrip().startswith("<think>"):
        thought, rest = "", text  # a model that does not think aloud
    answer = re.sub(r"</?answer>?", "", rest).strip()
    summary = "reasoning" if closed or not thought else f"… {thought[-60:]}"
    folded = (
        f"<details><summary>{html.escape(summary)}</summary><div class='thought'>{html.escape(thought)}</div></details>"
    )
    return (
        f"<div class='reply' style='border-color: {COLORS[modality]}'><b>{html.escape(heading)}</b>"
        f"{folded if thought else ''}<div class='answer'>{html.escape(answer)}</div>"
        f"<div class='speed'>{tokens} tokens, {speed:.0f} tokens/s</div></div>"
    )


def answers(
    model: Any, processor: Any, decoding: dict[str, Any]
) -> Callable[[str | None, str, str, bool], Iterator[list[str]]]:
    """What the page's button does: a function of clip, text, system prompt and whether to compare, to both columns."""

    def ask(clip: str | None, text: str, system_prompt: str, compare: bool) -> Iterator[list[str]]:
        if not clip and not text.strip():
            raise SettingError("There is no question. Record or upload one, type one, or both.")
        row: dict[str, Any] = {"key": "chat", "prompt": build_prompt(text.strip() or "(spoken)", system_prompt)}
        if clip:
            row["audio"] = {"array": load_audio(clip), "sampling_rate": TARGET_RATE}
        columns = dict.fromkeys(MODALITIES, "")
        for modality, question in zip(MODALITIES, (clip, text.strip()), strict=True):
            for trained in ((False, True) if compare else (True,)) if question else ():
                when = f", {'after' if trained else 'before'} training" if compare else ""
                above = columns[modality]
                for reply in stream(model, processor, row, modality, trained, **decoding):
                    columns[modality] = above + reply_html(NAMES[modality] + when, modality, *reply)
                    yield [*columns.values()]

    return ask


def build_page(model: Any, processor: Any, system_prompt: str, decoding: dict[str, Any]) -> Any:
    """The page, as Gradio's `Blocks`."""
    import gradio

    ask = answers(model, processor, decoding)

    def shown(*asked: Any) -> Iterator[list[str]]:
        try:
            yield from ask(*asked)
        except (ValueError, OSError) as refused:
            raise gradio.Error(str(refused), duration=None) from refused

    with gradio.Blocks(title="tars-trl", analytics_enabled=False) as page:
        gradio.Markdown("### Ask aloud, in writing, or both")
        with gradio.Row():
            sources: list[Any] = ["upload", "microphone"]
            clip = gradio.Audio(label="Spoken question", sources=sources, type="filepath", min_width=320)
            text = gradio.Textbox(label="Written question, with its options", lines=6, min_width=320)
        with gradio.Accordion("System prompt", open=False):
            prompt = gradio.Textbox(system_prompt, show_label=False, lines=2)
        compare = gradio.Checkbox(
            label="Compare with the model before training", value=False, visible=isinstance(model, PeftModel)
        )
        button = gradio.Button("Ask", variant="primary")
        replies = []
        with gradio.Row():
            for _ in MODALITIES:
                with gradio.Column(min_width=320):  # one under the other on a telephone
                    replies.append(gradio.HTML(min_height=60))
        button.click(shown, [clip, text, prompt, compare], replies, show_progress="hidden")
    return page


def serve(
    model: Any, processor: Any, system_prompt: str, decoding: dict[str, Any], host: str, port: int, wait: bool = True
) -> Any:
    """Serve the page until the program is ended, and return it.

    Args:
        host: address to bind to.
        port: of it.
        wait: whether to stay here.
    """
    import gradio

    page = build_page(model, processor, system_prompt, decoding).queue()
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=host, server_port=port, share=False, quiet=True, theme=theme, css=STYLE, prevent_thread_lock=True
    )
    print(f"http://{host}:{port}    (end it with Ctrl-C)", flush=True)
    if wait:
        page.block_thread()
    return page


def check_gradio() -> None:
    """See that the page can be served, before a model is loaded; an ImportError says how to bring Gradio."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("--web needs Gradio, which is not installed. Bring it with: pip install 'gradio>=6'")
