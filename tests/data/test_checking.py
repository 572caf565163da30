"""Clips are decoded once: remembered while they are the same, whatever became of the memory; shared by processes."""

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import xxhash
from datasets import Audio, Dataset

from tars_trl.data import checking
from tars_trl.data.checking import Memory, check_audio
from tars_trl.errors import AudioError
from tests.conftest import ROOT


def wav(seconds=0.5, peak=0.5, seed=0):
    buffer = io.BytesIO()
    samples = peak * np.random.default_rng(seed).uniform(-1, 1, round(16_000 * seconds))
    soundfile.write(buffer, samples, 16_000, format="WAV")
    return buffer.getvalue()


def rows(clips):
    """Bytes lie in the table, paths outside of it."""
    audio = [{"bytes": None, "path": str(c)} if not isinstance(c, bytes) else {"bytes": c, "path": None} for c in clips]
    table = {"audio": audio, "key": [f"q{number}" for number in range(len(clips))]}
    return Dataset.from_dict(table).cast_column("audio", Audio(decode=False))


@pytest.fixture
def memory():
    """The file, of this test alone."""
    return checking.memory_file()


@pytest.fixture
def decoded(monkeypatch):
    """The sources that are decoded, while the test runs."""
    sources, measure = [], checking.measure
    monkeypatch.setattr(checking, "measure", lambda clip, **kwargs: sources.append(clip) or measure(clip, **kwargs))
    return sources


@pytest.fixture
def clips(tmp_path):
    """Three usable ones, of which one is a file."""
    (tmp_path / "a.wav").write_bytes(wav(seed=2))
    return [wav(seed=0), wav(seed=1), tmp_path / "a.wav"]


def test_the_second_time_nothing_is_decoded(clips, decoded):
    for expected in (3, 0):
        decoded.clear()
        assert len(check_audio(rows(clips), max_seconds=1.0)) == 3
        assert len(decoded) == expected
    check_audio(rows([clips[1], wav(seed=5)]), max_seconds=1.0)  # another data set with one of them
    assert len(decoded) == 1


def test_limits_change_without_decoding(clips, decoded):
    check_audio(rows(clips), max_seconds=None)
    decoded.clear()
    with pytest.raises(AudioError, match=r"3 too long.*\n  q0: too long: 0.50 s, the limit is 0.4 s"):
        check_audio(rows(clips), max_seconds=0.4)
    with pytest.raises(AudioError, match=r"2 too large"):
        check_audio(rows(clips[1:]), max_seconds=None, max_megabytes=0.001)
    assert len(decoded) == 2  # those that are too large, which fails before they are read


def test_silence_is_remembered_and_what_cannot_be_decoded_is_not(decoded):
    bad = rows([wav(peak=0.0), b"broken", "/nowhere.wav", wav()])
    messages = []
    for expected in (4, 2):
        decoded.clear()
        with pytest.raises(AudioError) as refused:
            check_audio(bad, max_seconds=1.0)
        messages.append(str(refused.value))
        assert len(decoded) == expected
    assert messages[0] == messages[1]
    for line in ("q0: silent", "q1: unreadable", "q2: missing"):
        assert f"\n  {line}" in messages[0]
    assert check_audio(bad, max_seconds=1.0, on_error="skip")["key"][:] == ["q3"]


def test_a_changed_file_is_decoded_again(clips, decoded):
    """Also one of the same size whose time of writing was set back."""
    check_audio(rows(clips), max_seconds=1.0)
    before = clips[2].stat()
    clips[2].write_bytes(wav(peak=0.0))
    os.utime(clips[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert clips[2].stat().st_size == before.st_size
    with pytest.raises(AudioError, match="1 of 3 rows.*\n  q2: silent"):
        check_audio(rows(clips), max_seconds=1.0)


def flip_figures(path):
    """Change what is remembered, behind the memory's back."""
    with sqlite3.connect(path) as file:
        file.execute("UPDATE clips SET measured = replace(measured, '0.5', '0.0')")
    file.close()


DAMAGE = {
    "no database": lambda path: path.write_bytes(b"\x00" * 5000),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "pages lost": lambda path: path.write_bytes(path.read_bytes()[:4096] + os.urandom(path.stat().st_size - 4096)),
    "figures flipped": flip_figures,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_memory_is_made_anew(clips, memory, decoded, damage):
    check_audio(rows(clips), max_seconds=1.0)
    damage(memory)
    for expected in (3, 0):
        decoded.clear()
        assert len(check_audio(rows(clips), max_seconds=1.0)) == 3
        assert len(decoded) == expected


def test_without_a_place_to_write(clips, memory, decoded, caplog):
    memory.parent.write_text("a file where the folder should be")
    for _ in range(2):
        assert len(check_audio(rows(clips), max_seconds=1.0)) == 3
    assert len(decoded) == 6 and "will decode clips again" in caplog.text


def test_a_memory_that_another_process_is_writing(clips, memory, decoded, monkeypatch, caplog):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.1))
    check_audio(rows(clips[:1]), max_seconds=1.0)
    other = connect(memory, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert len(check_audio(rows(clips), max_seconds=1.0)) == 3 and "locked" in caplog.text
    other.close()
    decoded.clear()
    check_audio(rows(clips), max_seconds=1.0)
    assert len(decoded) == 2  # the first one is still there


def test_many_clips_keep_their_order(decoded, monkeypatch):
    monkeypatch.setattr(checking, "TOGETHER", 4)
    clips = [wav(0.2 if number % 3 else 0.05, seed=number) for number in range(11)]
    kept = check_audio(rows(clips), max_seconds=1.0, on_error="skip")
    assert kept["key"][:] == [f"q{number}" for number in range(11) if number % 3]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_a_clip_is_known_by_its_own_bytes_where_they_lie(kind):
    """Whatever part of which table it is in; nothing is copied."""
    contents = [b"a" * 9, None, b"", b"bc", b"defg"]
    clips = pa.array([{"bytes": b, "path": "there"} for b in contents], pa.struct({"bytes": kind, "path": pa.string()}))
    column = pa.chunked_array([clips.slice(0, 2), clips.slice(2, 0), clips.slice(2)]).slice(1)
    assert column.null_count == 0 and len(checking.clips_of(column)) == 4
    buffers = [checking._encoded(clip)[0] for clip in checking.clips_of(column)]
    assert [buffer and buffer.to_pybytes() for buffer in buffers] == contents[1:]
    values = clips.field("bytes").buffers()[2]
    assert values.address < buffers[-1].address < values.address + values.size
    named = [checking.fingerprint(clip) for clip in checking.clips_of(column)]
    assert len({*named}) == 4 and named[0] is None and named[3] == f"{xxhash.xxh3_128_hexdigest(b'defg')} 4"


def test_shares():
    for count, processes in ((10, 3), (2, 4), (0, 2)):
        shares = [checking._share(count, process, processes) for process in range(processes)]
        assert [row for share in shares for row in share] == list(range(count))


SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from datasets import load_from_disk
from tars_trl.data import checking
state, folder = PartialState(cpu=True), Path(sys.argv[1])
checking.memory_file = lambda: folder / "clips.sqlite"
measure, decoded = checking.measure, []
checking.measure = lambda clip, **kwargs: decoded.append(clip) or measure(clip, **kwargs)
rows, told = load_from_disk(str(folder / "rows")), []
for _ in range(2):
    try:
        checking.check_audio(rows, max_seconds=1.0, together=True)
    except ValueError as error:
        told.append(str(error))
    told.append(len(decoded))
kept = checking.check_audio(rows, max_seconds=1.0, on_error="skip", together=True)["key"][:]
(folder / f"{state.process_index}.json").write_text(json.dumps([told, kept]))
state.wait_for_everyone()
state.destroy_process_group()  # or gloo's threads may still run when Python ends, and abort it
"""


def test_processes_share_the_work(tmp_path):
    """Each decodes a part, once; all name the same rows, and keep the same."""
    clips = [wav(0.3 + 0.1 * number, peak=0.0 if number in (1, 5) else 0.5) for number in range(6)] + [b"broken"]
    rows(clips).save_to_disk(tmp_path / "rows")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, tmp_path / "script.py", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (told, kept), (others, others_kept) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert [told[1], others[1], told[3], others[3]] == [3, 4, 3, 5]  # the broken one is tried again
    assert told[0] == told[2] == others[0] == others[2]
    for line in ("3 of 7 rows", "\n  q1: silent", "\n  q5: silent", "\n  q6: unreadable"):
        assert line in told[0]
    assert kept == others_kept == ["q0", "q2", "q3", "q4"]
    assert done.stdout.count("dropped 3 of 7 rows") == 1
    shutil.rmtree(tmp_path / "rows")


def test_memory_of_another_decoder(memory, monkeypatch):
    file = Memory(memory)
    file.keep({"a": (1.0, 0.5)})
    assert file.recall(["a", "b"]) == {"a": (1.0, 0.5)}
    monkeypatch.setattr(checking, "DECODER", "another")
    assert file.recall(["a"]) == {}
    file.close()
