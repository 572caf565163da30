"""The two forms of a question: the conversation as it is written, and with the question spoken."""

import hashlib
import json
from typing import Any, Literal

Modality = Literal["speech", "text"]
Modalities = Literal["both", "speech", "text"]
MODALITIES: tuple[Modality, Modality] = ("speech", "text")
Conversation = list[dict[str, Any]]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, str]]:
    """Message content as text parts alone, whatever other keys a data set filled them up with."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "text", "text": part["text"]} for part in content if part.get("type", "text") == "text"]


def written_prompt(prompt: Conversation) -> Conversation:
    """The conversation as it is written, with the content of every message as a list of text parts."""
    return [{"role": message["role"], "content": _parts(message["content"])} for message in prompt]


def spoken_prompt(prompt: Conversation, *, transcript: bool = False) -> Conversation:
    """The same conversation with the question spoken: the first text part of the last user turn becomes an audio part.

    Everything else (system prompt, an instruction in later parts) stays the same text. The audio part holds no
    waveform; that travels beside the prompt. With `transcript` it keeps the words, under `text`: for tables and reward
    functions, never for a chat template.

    Raises:
        ValueError: the conversation has no user turn, or the turn has no text that could be spoken.
    """
    spoken = written_prompt(prompt)
    for message in reversed(spoken):
        if message["role"] == "user":
            if not message["content"]:
                break
            words = {"text": message["content"][0]["text"]} if transcript else {}
            message["content"][0] = {"type": "audio", **words}
            return spoken
    raise ValueError(
        f"The prompt {prompt!r} has no user turn with a text part, so there is no question to replace by its spoken "
        "form. Give every row a `prompt` whose last user turn starts with the written question."
    )


def question_key(row: dict[str, Any]) -> str:
    """What identifies the question of a row: its `key` column, or else a digest of its written prompt."""
    if row.get("key") is not None:
        return str(row["key"])
    return hashlib.blake2b(json.dumps(row["prompt"], sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
