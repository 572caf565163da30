"""Whatever a table or a clip holds, it is used or refused in a sentence that names where it is. 6,000 examples."""

import json
import math
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Audio, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_trl import load_questions
from tars_trl.data import check_rows, spoken_text
from tars_trl.data.audio import audio_problem, load_audio
from tars_trl.data.checking import check_audio
from tars_trl.errors import AudioError, QuestionError
from tests.data.test_audio import CODECS, encoded, limited_memory, lying_flac, lying_mp3, tone

pytestmark = pytest.mark.slow

REASONS = ("missing", "unreadable", "too large", "no rate", "not finite", "unscaled", "silent", "too short", "too long")


# ---- Rows ----------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["red", "", " ", "A", "B", "1", "\ud800", "\x00", "<|AUDIO|>", "A. one\nB. two", "a" * 999])
TEXTS |= st.text(max_size=8)
NUMBERS = st.sampled_from([0, 1, 2, -1, 26, 2**63, 10**30, 0.5, 1.0, 1e300, math.nan, math.inf, True])
SCALARS = st.none() | NUMBERS | TEXTS
ODD = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=6
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "audio", None]), "text": st.none() | TEXTS}))
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", None]), "content": st.none() | TEXTS | PARTS}
)
FIELDS = {
    "question": TEXTS | ODD,
    "options": st.lists(TEXTS | NUMBERS, max_size=4) | st.just(["x"] * 2) | ODD,
    "answer_index": NUMBERS | ODD,
    "answer": SCALARS | ODD,
    "option_labels": st.lists(TEXTS, max_size=3) | ODD,
    "key": SCALARS | ODD,
    "prompt": TEXTS | st.lists(TURNS, max_size=3) | ODD,
    "prompt_for_tts": TEXTS | ODD,
    "reference": SCALARS,
    "audio": st.sampled_from(["0.flac", "/etc/passwd", "../x", "a\x00b", "http://x/y.wav", 3, None]) | ODD,
    "topic": ODD,
}
GOOD = {"question": "What is grass?", "options": ["red", "green"], "answer_index": 1, "audio": "0.flac"}


@st.composite
def tables(draw) -> list[dict]:
    """Two to four rows; in each some fields are odd, or missing."""
    rows = []
    for number in range(draw(st.integers(2, 4))):
        row = {**GOOD, "key": f"q{number}"}
        for name in draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=3)):
            row[name] = draw(FIELDS[name])
        for name in draw(st.sets(st.sampled_from(sorted(GOOD)), max_size=1)):
            if draw(st.integers(0, 4)) == 0:
                del row[name]
        rows.append(row)
    return rows


@settings(max_examples=3_000, deadline=None)
@given(rows=tables(), system_prompt=st.sampled_from([None, "New."]))
def test_rows(rows, system_prompt):
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "q.jsonl")
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            loaded = load_questions(table, audio_required=False, system_prompt=system_prompt)
        except QuestionError as error:
            message = str(error)
            assert "q.jsonl" in message
            assert any(word in message for word in ("row ", "line ", "column", "clips lie outside")), message
            return
    check_rows(loaded)
    for row in loaded:
        assert spoken_text(row["prompt"]).strip() and 0 <= row["answer_index"] < len(row["options"])
        assert len(set(row["options"])) == len(row["options"]) >= 2


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=200), name=st.sampled_from(["q.jsonl", "q.csv", "q.parquet"]))
def test_files_of_anything(content, name):
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE, before = Path(folder, "cache"), datasets.config.HF_DATASETS_CACHE
        file = Path(folder, name)
        file.write_bytes(content)
        try:
            load_questions(file, audio_required=False)
        except QuestionError as error:
            assert name in str(error)
        finally:
            datasets.config.HF_DATASETS_CACHE = before


# ---- Clips ---------------------------------------------------------------------------------------------------------

WHOLE = [encoded(tone(), codec=codec) for codec in CODECS] + [lying_flac(), lying_mp3()]


@st.composite
def clips(draw) -> bytes:
    """A clip that is cut, repeated, overwritten in places (its header most of all), or nothing but noise."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([b"RIFF", b"OggS", b"ID3", b"fLaC", b"\xff\xfb", b"caff", b".snd", b""])) + draw(
            st.binary(max_size=200)
        )
    clip = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, 63) | st.integers(0, len(clip) - 1))
        odd = draw(
            st.sampled_from([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            | st.binary(max_size=8)
        )
        clip[place : place + len(odd)] = odd
    return bytes(clip[: draw(st.just(len(clip)) | st.integers(0, len(clip)))]) * draw(st.sampled_from([1, 1, 1, 2]))


@settings(max_examples=2_500, deadline=None)
@given(clip=clips(), max_seconds=st.sampled_from([None, 0.2, 30.0]))
def test_clips(clip, max_seconds):
    with limited_memory(3 * 2**30):
        problem = audio_problem(clip, max_seconds=max_seconds)
        assert problem is None or problem.split(":")[0] in REASONS
        try:
            waveform = load_audio(clip)
        except AudioError as error:
            assert error.reason in REASONS and problem is not None and len(str(error)) < 500
            return
    assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform) and np.isfinite(waveform).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(clips(), min_size=1, max_size=6))
def test_rows_with_bad_clips_are_named(found):
    audio = [{"bytes": clip, "path": None} for clip in found]
    rows = Dataset.from_dict({"audio": audio, "key": [f"k{number}" for number in range(len(found))]})
    rows = rows.cast_column("audio", Audio(decode=False))
    bad = {f"k{number}" for number, clip in enumerate(found) if audio_problem(clip, max_seconds=1.0)}
    try:
        check_audio(rows, max_seconds=1.0)
    except AudioError as error:
        assert all((f"\n  {key}: " in str(error)) == (key in bad) for key in rows["key"])
    else:
        assert not bad
