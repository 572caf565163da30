"""The two forms of a question: the conversation as it is written, and with the question spoken."""

import hashlib
import json
from typing import Any, Literal

from .schema import spoken_text, text_part, unify_content

Modality = Literal["speech", "text"]
Modalities = Literal["both", "speech", "text"]
MODALITIES: tuple[Modality, Modality] = ("speech", "text")
Conversation = list[dict[str, Any]]


def written_prompt(prompt: Conversation) -> Conversation:
    """The conversation as it is written, with the content of every message as a list of text parts.

    Whatever other keys a data set filled the parts up with is left out.
    """
    written = []
    for turn in unify_content(prompt, parts_used=True):
        texts = [part["text"] for part in turn["content"] if part.get("type", "text") == "text"]
        written.append({"role": turn["role"], "content": list(map(text_part, texts))})
    return written


def replace_question(prompt: Conversation, part: dict[str, str]) -> Conversation:
    """The written conversation with `part` in the place of its question, the first text of the last user turn.

    Raises:
        ValueError: the conversation has no user turn, or the turn has no text that could be spoken.
    """
    written = written_prompt(prompt)
    question = next((turn["content"] for turn in reversed(written) if turn["role"] == "user"), None)
    if not question:
        raise ValueError(
            f"The prompt {prompt!r} has no user turn with a text part, so there is no question to replace by its "
            "spoken form. Give every row a `prompt` whose last user turn starts with the written question."
        )
    question[0] = part
    return written


def spoken_prompt(prompt: Conversation, *, transcript: bool = False) -> Conversation:
    """The same conversation with the question spoken: the first text part of the last user turn becomes an audio part.

    Everything else (system prompt, an instruction in later parts) stays the same text. The audio part holds no
    waveform; that travels beside the prompt. With `transcript` it keeps the words, under `text`: for tables and reward
    functions, never for a chat template. Raises what `replace_question` raises.
    """
    return replace_question(prompt, {"type": "audio"} | ({"text": spoken_text(prompt)} if transcript else {}))


def question_key(row: dict[str, Any]) -> str:
    """What identifies the question of a row: its `key` column, or else a digest of its written prompt."""
    if row.get("key") is not None:
        return str(row["key"])
    return hashlib.blake2b(json.dumps(row["prompt"], sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
