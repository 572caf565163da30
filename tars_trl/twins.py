"""Which row is which twin, and which written completion a spoken one is compared with.

A group of `group_size` rows belongs to one question. With both modalities its first half is spoken and its second half
written, so that two ordinary TRL groups lie side by side. Everything here is a pure function of the global row number,
the question's key and the seed: nothing depends on how rows fell on processes.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

Modality = Literal["speech", "text"]
Modalities = Literal["both", "speech", "text"]
Conversation = list[dict[str, Any]]


def modality_of(row: int, group_size: int, modalities: Modalities = "both") -> Modality:
    """Modality of global row number `row` (position in the generation batch over all processes)."""
    if modalities != "both":
        return modalities
    return "speech" if row % group_size < group_size // 2 else "text"


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


def reference_candidates(usable: Sequence[bool], group_size: int) -> list[list[int]]:
    """Rows that may serve as reference, for each question of a batch.

    Args:
        usable: for each of N rows, whether its completion is right and complete. N is a multiple of `group_size`.
        group_size: rows of a question, the written ones in the second half.

    Returns:
        for each of N / group_size questions, the numbers of its usable written rows, in order; empty where there is
        no reference (then R_rep = R_beh = 0, paper section on training).
    """
    half = group_size // 2
    return [
        [row for row in range(start + half, start + group_size) if usable[row]]
        for start in range(0, len(usable), group_size)
    ]


def draw_references(
    candidates: Sequence[Sequence[int]],
    keys: Sequence[str],
    group_size: int,
    *,
    seed: int,
    step: int,
    how: Literal["random", "first"] = "random",
) -> list[int]:
    """One reference for each spoken row: a correct written completion of the same question, drawn at random.

    The draw depends on (seed, step, key, how often the key occurred before in the batch) and on nothing else.

    Args:
        candidates: as `reference_candidates` returns them, one list a question.
        keys: the key of each question, same length.
        group_size: rows of a question, the spoken ones in the first half.

    Returns:
        N row numbers: the reference of each spoken row, -1 for written rows and where there is none.
    """
    half = group_size // 2
    references: list[int] = []
    seen: Counter[str] = Counter()
    for rows, key in zip(candidates, keys, strict=True):
        generator = random.Random(f"{seed}/{step}/{key}/{seen[key]}")  # seeding with a string is stable across runs
        seen[key] += 1
        for _ in range(half):
            if not rows:
                references.append(-1)
            else:
                references.append(rows[0] if how == "first" else generator.choice(rows))
        references += [-1] * (group_size - half)
    return references
