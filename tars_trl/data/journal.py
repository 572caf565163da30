"""Lines of JSON that survive an interruption, and digests that say what they depend on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..files import parse_json

Line = dict[str, Any]


def sha256(value: Any) -> str:
    """Digest of a text, or of a value as JSON with sorted keys."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sampled_pieces(path: Path, piece: int, whole: int) -> Iterator[bytes]:
    """The bytes of a file in pieces of `piece`; of one larger than `whole`, 64 pieces that are evenly spread."""
    size = path.stat().st_size
    step = max(piece, (size - piece) // 63) if size > whole else piece
    with path.open("rb") as opened:
        for start in range(0, size, step):
            opened.seek(start)
            yield opened.read(piece)


def rows_digest(rows: Dataset, with_audio: bool) -> str:
    """Digest of what is asked and of what is right, and of the audio (a file outside the table counts by its path)."""
    digest = []
    for row in rows.with_format(None):
        names = ("key", "prompt", "options", "answer_index", "reference")
        fields: dict[str, Any] = {name: row.get(name) for name in names}
        if with_audio:
            audio = row["audio"] or {}
            fields["audio"] = audio.get("path") if audio.get("bytes") is None else audio["bytes"].hex()
        digest.append(sha256(fields))
    return sha256("".join(digest))


def read_lines(files: Iterable[Path]) -> dict[str, Line]:
    """Finished completions by row key. A line cut off by an interruption is left out, so that it is asked again."""
    by_key: dict[str, Line] = {}
    for path in files:
        # Split at \n alone: splitlines() also splits at line separators that a completion may hold.
        for text in path.read_bytes().split(b"\n"):
            try:
                line = parse_json(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("key"), str):
                by_key[line["key"]] = line
    return by_key


def append_lines(path: Path, lines: Sequence[Line]) -> None:
    """Append lines to a file and close it, beginning on a new line whatever an interruption left there."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())
