"""Preference pairs: which pair is taken and which is not, and the files, from sampling on a tiny random model."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from build_preferences import main

from tars_trl import load_questions
from tars_trl.errors import SettingError
from tars_trl.sampling import preferences, shared
from tars_trl.sampling.preferences import PAIRED, Candidate, PreferenceSettings, choose
from tars_trl.settings import parse
from tests.conftest import ROOT, clip, questions
from tests.conftest import question as question_row


def candidate(score, tokens=20, truncated=False, text=None):
    text = text or f"{score} {tokens}"
    return Candidate(text, tokens, truncated, correct=score >= 1, score=score)


def wanted(**settings):
    return PreferenceSettings(**{"model": "some/model", "dataset": "some/questions", **settings})


def chosen_of(text, speech, key="q", **settings):
    return choose({"speech": speech, "text": text}, key, wanted(**settings))


# ---- Choosing ------------------------------------------------------------------------------------------------------


def test_widest_margin_is_taken():
    text = [candidate(1.0), candidate(1.5), candidate(0.5)]
    chosen, rejected, reason = chosen_of(text, [candidate(0.5), candidate(0.0), candidate(1.5)])
    assert (chosen.score, rejected.score, reason) == (1.5, 0.0, PAIRED)


def test_chosen_is_right_whatever_its_score():
    """A wrong written completion is no teacher, even where it outscores the spoken one."""
    assert chosen_of([candidate(0.5)], [candidate(0.0)]) == (None, None, "no correct written completion")


@pytest.mark.parametrize(
    ("text", "speech", "settings", "reason"),
    [
        ([candidate(1.5, truncated=True)], [candidate(0)], {}, "correct written completions truncated"),
        ([candidate(1.5, tokens=9)], [candidate(0)], {"min_tokens": 10}, "correct written completions truncated"),
        ([candidate(1.5)], [candidate(0, truncated=True)], {}, "spoken completions truncated"),
        ([candidate(1.5)], [candidate(0, tokens=31)], {"max_tokens": 30}, "spoken completions truncated"),
        ([candidate(1.5)], [candidate(1.5)], {}, "spoken completions as good"),
        ([candidate(1.0)], [candidate(0.5)], {"min_margin": 1.0}, "margin below min_margin"),
        ([candidate(1.5, tokens=41)], [candidate(0)], {}, "lengths differ"),
        ([candidate(1.5)], [candidate(0, tokens=41)], {}, "lengths differ"),
    ],
)
def test_reasons(text, speech, settings, reason):
    """Each filter drops the pair and says so; a usable correct completion stays for the supervised set."""
    chosen, rejected, given = chosen_of(text, speech, **settings)
    assert given.startswith(reason) and rejected is None
    assert (chosen is None) == reason.startswith("correct written")


@pytest.mark.parametrize("weight", [0.1, 0.15, 0.3, 0.7])
def test_a_margin_is_what_it_is_on_paper(weight):
    """1.15 - 0.15 is 0.9999999999999999, and one that is wrong is still one that is wrong."""
    _, rejected, reason = chosen_of([candidate(1 + weight)], [candidate(weight)], format_weight=weight, min_margin=1)
    assert (rejected, reason) == (candidate(weight), PAIRED)


def test_filter_passes_over_to_the_next_best_pair():
    speech = [candidate(0.0, tokens=100), candidate(0.5, tokens=30)]
    _, rejected, reason = chosen_of([candidate(1.5)], speech)
    assert (rejected.score, reason) == (0.5, PAIRED)


def test_equals_are_drawn_by_seed_and_key():
    text = [candidate(1.5, text=str(number)) for number in range(20)]
    drawn = [chosen_of(text, [candidate(0)], key, seed=seed)[0].text for key in "abc" for seed in range(3)]
    assert drawn == [chosen_of(text, [candidate(0)], key, seed=seed)[0].text for key in "abc" for seed in range(3)]
    assert len(set(drawn)) > 3


@pytest.mark.parametrize("name", ["num_samples", "temperature", "min_margin", "max_length_ratio", "batch_size"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        wanted(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 is out of range. Give 1 or more"),
        ({"min_tokens": 100, "max_tokens": 50}, "min_tokens=100 is above max_tokens=50"),
        ({"min_tokens": 2000}, "min_tokens=2000 is above max_completion_length=1024"),
        ({"min_margin": 2.0}, "min_margin=2.0.*is above 1.5"),
        ({"min_margin": 1.2, "format_weight": 0.1}, "min_margin=1.2.*is above 1.1"),
        ({"format_weight": -0.5}, "format_weight=-0.5"),
        ({"on_bad_audio": "bad"}, "on_bad_audio='bad'.*refuse, skip"),
        ({"output_dir": ""}, "output_dir is not given"),
        ({"min_margin": float("nan")}, "min_margin=nan is not a finite number"),
        ({"temperature": float("inf")}, "temperature=inf is not a finite number"),
        ({"dtype": "f32"}, "dtype='f32'.*float32"),
    ],
)
def test_settings_that_would_fail_after_sampling(settings, message):
    with pytest.raises(ValueError, match=message):
        wanted(**settings)


@pytest.mark.parametrize("narrow", [{"top_p": 1e-4}, {"min_p": 0.99}])
def test_samples_are_drawn_as_the_trainer_draws_them(tiny, monkeypatch, narrow):
    """From the full distribution, whatever the checkpoint's generation_config says."""
    model, processor = tiny
    for name, value in narrow.items():
        monkeypatch.setattr(model.generation_config, name, value)
    settings = wanted(num_samples=8, max_completion_length=6)
    (line,) = preferences._sample_batch(model, processor, [question_row(0)], settings)
    assert all(len({c["text"] for c in line[name]}) > 4 for name in ("speech", "text"))


# ---- Building ------------------------------------------------------------------------------------------------------


def lucky(monkeypatch):
    """Count texts of odd length as right, and every completion as finished: a random model does neither by itself."""
    real = preferences.complete

    def complete(*args, **kwargs):
        yield from (replace(completion, truncated=False) for completion in real(*args, **kwargs))

    monkeypatch.setattr(preferences, "complete", complete)
    monkeypatch.setattr(preferences, "accuracy_reward", lambda texts, *_: [float(len(texts[0]) % 2)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny random model that hears, and of seven questions, one with its audio in a file of its own."""
    from tiny_omni import tiny_random

    folder = tmp_path_factory.mktemp("parts")
    model, processor = tiny_random(0)
    for weight in model.model.language_model.layers.parameters():
        weight.data.mul_(8)  # as it is, the tied embeddings repeat the last token of any prompt
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "questions").mkdir()
    beside = folder / "questions" / "clip.wav"
    beside.write_bytes(clip(0.7, 9))
    rows = questions(6).to_list() + [question_row(6) | {"audio": {"bytes": None, "path": str(beside)}}]
    dataset = type(questions()).from_list(rows).cast_column("audio", questions(1).features["audio"])
    dataset.to_parquet(folder / "questions" / "train.parquet")
    return folder


@pytest.fixture
def build(folders, tmp_path, monkeypatch):
    """Run the recipe; `batches` counts the batches that were sampled."""
    lucky(monkeypatch)
    real, batches = preferences.complete, []

    def complete(model, processor, rows, *args, **kwargs):
        batches.append([row["key"] for row in rows])
        return real(model, processor, rows, *args, **kwargs)

    monkeypatch.setattr(preferences, "complete", complete)

    def run(output="out", **settings):
        batches.clear()
        main(arguments(folders, tmp_path / output, **settings))
        return tmp_path / output

    run.batches = batches
    return run


def arguments(folders, output, **settings):
    data = folders / "questions" / "train.parquet"
    given = {"model": folders / "model", "dataset": data, "output_dir": output, "num_samples": 3,
             "max_completion_length": 6, "batch_size": 2, "use_cpu": True, **settings}  # fmt: skip
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


def contents(folder):
    return {name: load_questions(folder / name, "train").to_list() for name in ("preferences", "sft")}


def test_both_sets_are_written_and_reported(build, capsys):
    folder = build()
    made, report = contents(folder), json.loads((folder / "report.json").read_text())
    assert 0 < len(made["preferences"]) <= len(made["sft"]) <= 7
    assert report["preferences"] == len(made["preferences"]) == report["reasons"][PAIRED]
    assert sum(report["reasons"].values()) == report["questions"] == 7
    printed = capsys.readouterr().out
    assert all(f"{count} {reason}" in printed for reason, count in report["reasons"].items())
    lines = [json.loads(line) for path in folder.glob("samples.*") for line in path.read_text().splitlines()]
    by_key = {line["key"]: line for line in lines}
    for row in made["preferences"]:
        texts = {name: [c["text"] for c in by_key[row["key"]][name]] for name in ("speech", "text")}
        assert row["chosen"][0]["content"] in texts["text"] and row["rejected"][0]["content"] in texts["speech"]
        assert row["chosen"][0]["role"] == "assistant" and row["chosen_score"] >= row["rejected_score"] + 0.5
        assert len(row["chosen"][0]["content"]) % 2 and row["prompt"][-1]["role"] == "user"
    completions = {row["key"]: row["completion"] for row in made["sft"]}
    assert all(row["chosen"] == completions[row["key"]] for row in made["preferences"])
    assert all(row["audio"]["bytes"] for row in made["sft"]), "audio must be inside the files"


def test_modalities_are_sampled_apart(build):
    """Spoken and written completions come from different prompts."""
    folder = build()
    (file,) = folder.glob("samples.*")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert any(line["speech"] != line["text"] for line in lines)
    assert all(len(line[name]) == 3 for line in lines for name in ("speech", "text"))


def test_interrupted_run_continues(build):
    """After a kill in mid-line only the missing batches are sampled, and the result is the same."""
    folder = build()
    assert len(build.batches) == 8  # four batches in two modalities
    expected = contents(folder)
    (samples,) = folder.glob("samples.*")
    lines = samples.read_bytes().split(b"\n")
    samples.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:40])
    build()
    assert {tuple(keys) for keys in build.batches} == {("q2", "q3"), ("q4", "q5"), ("q6",)}
    assert contents(folder) == expected
    build()
    assert build.batches == []


def test_other_filters_sample_nothing(build):
    folder = build()
    before = contents(folder)["preferences"]
    before_sft = len(contents(folder)["sft"])
    build(min_margin=1)  # a difference of 1 is all there can be
    assert build.batches == [] and contents(folder)["preferences"] == before
    with pytest.raises(ValueError, match="too short or too long"):
        build(max_tokens=5)
    assert build.batches == [] and len(contents(folder)["sft"]) == before_sft
    build(seed=1)
    assert len(build.batches) == 8


def test_a_data_set_is_replaced_when_the_new_one_is_whole(build, monkeypatch):
    """Killed between two shards, what is left is the old set and not a part of the new one."""
    folder = build()
    before, written = contents(folder), []
    monkeypatch.setattr(preferences, "SHARD_ROWS", 1)
    real = shared.write_parquet

    def killed(rows, columns, place):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(place)
        real(rows, columns, place)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shared, "write_parquet", killed)
        build()
    assert len(written) == 1 and contents(folder) == before
    build()
    assert contents(folder) == before  # in other shards
    assert len(list((folder / "sft").iterdir())) == len(before["sft"]) > 1
    assert not list(folder.glob("*.part")) and not list(folder.glob("*.old"))


def test_processes_wait_for_hours(build, monkeypatch):
    """They meet after sampling; the default of NCCL is ten minutes."""
    given, real = [], shared.PartialState
    monkeypatch.setattr(shared, "PartialState", lambda **options: given.append(options) or real())
    build()
    assert [options["timeout"].total_seconds() for options in given if options] == [24 * 3600]


def test_no_pair_at_all_is_an_error(build, monkeypatch):
    monkeypatch.setattr(preferences, "accuracy_reward", lambda *_: [0.0])
    with pytest.raises(ValueError, match="7 no correct written completion"):
        build()


def test_a_misspelt_model_is_refused_before_the_questions_are_read(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "load_questions", None)
    with pytest.raises(SettingError, match="there is no such folder, .* Did you mean .*/model"):
        main(arguments(folders, tmp_path / "out", model=folders / "modle"))


def test_recipe_yaml_parses():
    for path in (ROOT / "recipes").glob("*_*/arms/*/preferences.yaml"):
        (settings,) = parse(PreferenceSettings, args=["--config", str(path)])
        assert settings.output_dir.startswith("runs/"), path


@pytest.mark.slow
def test_two_processes_make_the_same(build, folders, tmp_path):
    expected = contents(build())
    script = tmp_path / "launched.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "import pytest, tests.conftest, tests.sampling.test_preferences as here\n"
        "here.lucky(pytest.MonkeyPatch())\nhere.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command + arguments(folders, tmp_path / "two"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = list((tmp_path / "two").glob("samples.*"))
    assert Counter(path.name.split(".")[2] for path in files) == {"0": 1, "1": 1}
    assert contents(tmp_path / "two") == expected
