"""Cascades: what was said is first transcribed, then asked in writing (paper, cascade baselines).

`cascade` takes them from a file or a speech recognition model; `self_cascade` lets the model transcribe, then answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import build_prompt
from ..data.prompts import replace_question
from ..data.schema import text_part
from ..errors import SettingError
from ..files import parse_json, read_json
from ..sampling.complete import complete
from ..speaking.recognition import Transcriber
from .tasks import CLIP, TRANSCRIBE, TRANSCRIBER


def with_transcript(row: dict[str, Any], transcript: str) -> dict[str, Any]:
    """`row` with the spoken part of its prompt (the first text of the last user turn) replaced by what was heard."""
    return {**row, "prompt": replace_question(row["prompt"], text_part(transcript))}


def read_transcripts(path: str, keys: Sequence[str]) -> dict[str, str]:
    """Transcripts by row key, from lines `{"key": …, "transcript": …}` or from one JSON object `{key: transcript}`.

    Raises:
        SettingError: no such file, lines that hold something else, or rows without a transcript (the first 20 are
            named).
    """
    file = Path(path).expanduser()
    try:
        if file.suffix == ".jsonl":
            lines = [parse_json(line) for line in file.read_bytes().split(b"\n") if line.strip()]
            transcripts = {line["key"]: line["transcript"] for line in lines}
        else:
            transcripts = read_json(file)
    except OSError as error:
        raise SettingError(f"transcripts={path}: it cannot be read, {error.strerror}. Correct the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"transcripts={path}: not a table of transcripts, {error!r}. Write lines "
            '{"key": "…", "transcript": "…"} in a .jsonl, or one object {"key": "transcript", …} in a .json file.'
        ) from error
    if not isinstance(transcripts, dict) or not all(isinstance(text, str) for text in transcripts.values()):
        raise SettingError(f"transcripts={path}: a transcript is no text. Write one text for each key.")
    missing = [key for key in keys if key not in transcripts]
    if missing:
        raise SettingError(
            f"transcripts={path}: {len(missing)} of {len(keys)} rows have none, such as {missing[:20]}. Add them, or "
            "transcribe with asr_model instead."
        )
    return transcripts


def from_itself(model: Any, processor: Any, max_completion_length: int, batch_size: int) -> Transcriber:
    """Lets the speech LLM transcribe, greedily, with the prompt of the LibriSpeech task."""
    prompt = build_prompt(CLIP, TRANSCRIBER, TRANSCRIBE)

    def transcribe(rows: Sequence[dict[str, Any]]) -> list[str]:
        asked = [{**row, "prompt": prompt} for row in rows]
        options = {"batch_size": batch_size, "max_completion_length": max_completion_length}
        return [done.text.strip() for done in complete(model, processor, asked, "speech", **options)]

    return transcribe
