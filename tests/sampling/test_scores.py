"""pass@k, what is selected in which order, and a real scoring run that is interrupted."""

import itertools
import json
import os
import subprocess
import sys

import pytest
from datasets import Audio, Dataset

from tars_trl import load_questions
from tars_trl.data.audio import load_audio
from tars_trl.errors import SettingError
from tars_trl.sampling import scores
from tars_trl.sampling.scores import (
    Samples,
    ScoreSettings,
    count_drops,
    pass_at_k,
    sample_answers,
    select_questions,
    write_scores,
)
from tars_trl.settings import parse
from tests.conftest import ROOT, clip, question, questions


def score(speech, text, k, order="easy_first", complete=None):
    """`scores.score` of samples that are right or not, all of them complete but for the written ones in `complete`."""
    heard = Samples(speech, [True] * len(speech))
    return scores.score(heard, Samples(text, complete or [True] * len(text)), k, order)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for samples, correct, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if correct <= samples and k <= samples:
            draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    for samples, correct, k in ((4, 2, 5), (4, 5, 2), (4, 2, 0), (4, -1, 2)):
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(samples, correct, k)


def test_score_columns():
    found = score([True, False, False, False], [True, True, True, False], 2)
    assert found == {
        **{"speech_accuracy": 0.25, "text_accuracy": 0.75, "speech_pass_at_k": 0.5, "text_pass_at_k": 1.0},
        **{"gap": 0.5, "text_references": 0.75, "curriculum": 0.5},
    }
    assert score([True, False], [True, True], 1, "largest_gap")["curriculum"] == -0.5


HARD, EASY, SOLVED, DEAF, HEARD_ONLY = (
    score(heard, read, 2)
    for heard, read in (
        ([False, False], [False, False]),
        ([True, False], [True, True]),
        ([True, True], [True, True]),
        ([False, False], [True, False]),
        ([True, False], [False, False]),
    )
)


@pytest.mark.parametrize(
    ("keep", "top", "expected"),
    [
        ("all", None, [2, 1, 3, 4, 0]),  # easy to hard; equal ones as they came
        ("reachable", None, [2, 1, 3]),  # a written sample is right
        ("learnable", None, [1, 3]),
        ("learnable", 1, [1]),
    ],
)
def test_selection(keep, top, expected):
    assert select_questions([HARD, EASY, SOLVED, DEAF, HEARD_ONLY], keep, top) == expected


def test_a_right_sample_that_was_cut_off_is_no_reference():
    """As in the trainer, where a reference is right and complete; it still counts as right."""
    cut = score([False] * 2, [True, False], 2, complete=[False, True])
    assert (cut["text_accuracy"], cut["text_references"]) == (0.5, 0.0)
    assert select_questions([cut, EASY], "reachable") == [1]


def test_what_is_dropped_is_counted_by_reason():
    found = [HARD, EASY, SOLVED, DEAF, HEARD_ONLY]
    assert count_drops(found, "all", 5) == {}
    assert count_drops(found, "learnable", len(select_questions(found, "learnable"))) == {
        "unreachable": 2,
        "solved already": 1,
    }
    assert count_drops(found, "reachable", len(select_questions(found, "reachable", 1))) == {
        "unreachable": 2,
        "cut by top": 2,
    }


def test_largest_gap_comes_first():
    found = [score(*pair, 2, "largest_gap") for pair in (([True] * 2, [True] * 2), ([False] * 2, [True] * 2))]
    assert select_questions(found) == [1, 0]


def test_selections_that_cannot_work():
    with pytest.raises(ValueError, match=r"leaves none of 1 questions \(1 unreachable\)"):
        select_questions([HARD], "reachable")


@pytest.fixture
def right_where_even(monkeypatch):
    """Extraction that calls a completion of even length right: a random model gets half of them."""
    monkeypatch.setattr(scores, "extract_strict", lambda text, options: 0 if len(text) % 2 else 1)


def rows(count):
    return Dataset.from_list([{**question(n), "answer_index": 1} for n in range(count)]).cast_column(
        "audio", Audio(decode=False)
    )


def test_samples_do_not_depend_on_where_a_run_stopped(tiny, tmp_path, monkeypatch, right_where_even):
    data = rows(5)

    def sample(folder, modality="speech", facts=None):
        settings = ScoreSettings(
            model="any", dataset="any", num_samples=4, max_completion_length=6, batch_size=2, output_dir=str(folder)
        )
        return sample_answers(settings, data, modality, lambda: tiny, facts or {})

    whole = sample(tmp_path / "whole")
    assert len(whole) == 5 and {len(each.right) for each in whole} == {len(each.complete) for each in whole} == {4}
    assert 0 < sum(sum(each.right) for each in whole) < 20  # some right, some wrong

    real, asked = scores.complete, []

    def complete(model, processor, batch, *args, **kwargs):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append([row["key"] for row in batch])
        return real(model, processor, batch, *args, **kwargs)

    monkeypatch.setattr(scores, "complete", complete)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut")
    (journal,) = (tmp_path / "cut" / ".work").iterdir()
    journal.write_bytes(journal.read_bytes() + b'{"key": "q2", "corr')  # and the line under way was cut off
    asked.clear()
    monkeypatch.setattr(scores, "complete", lambda *args, **kwargs: asked.append(args[2]) or real(*args, **kwargs))
    assert sample(tmp_path / "cut") == whole
    assert [[row["key"] for row in batch] for batch in asked] == [["q2", "q3"], ["q4"]]
    asked.clear()
    assert sample(tmp_path / "cut") == whole and not asked
    for other in ({"model": "other"}, {}):  # another model, another modality: asked anew
        sample(tmp_path / "cut", "text", other)
    assert len(asked) == 6


def test_scored_rows_are_a_data_set_in_order_with_audio_inside(tmp_path):
    data = questions(3)
    (tmp_path / "clip.wav").write_bytes(clip(0.5))
    by_path = [{**question(9), "audio": {"bytes": None, "path": str(tmp_path / "clip.wav")}}]
    data = Dataset.from_list([*data, *by_path]).cast_column("audio", Audio(decode=False))
    found = [score([False], [n % 2 == 0], 1) for n in range(4)]
    write_scores(data, found, [2, 3, 0], tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "clip.wav").unlink()
    back = load_questions(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert back["key"][:] == ["q2", "q9", "q0"]
    assert back["curriculum"][:] == [0.5, 1.0, 0.5] and back["gap"][:] == [1.0, 0.0, 1.0]
    assert len(load_audio(back[1]["audio"])) == 8000
    # scored again, the columns are replaced and not doubled
    write_scores(back, found[:3], [0], tmp_path / "again.parquet")
    assert load_questions(tmp_path / "again.parquet").column_names.count("gap") == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_trainer_follows_the_scores(make_trainer, tmp_path, seed):
    """What is written is asked in the order of its curriculum, whatever the seed."""
    found = [score([False] * 4, [number < right for number in range(4)], 1) for right in (1, 3, 0, 4)]
    write_scores(
        questions(4), found, select_questions(found)[::-1], tmp_path / "scored.parquet"
    )  # rows the wrong way round
    data = load_questions(tmp_path / "scored.parquet")
    trainer = make_trainer(dataset=data, curriculum="curriculum", seed=seed, num_generations=4)
    asked = [row["key"] for batch in trainer.get_train_dataloader() for row in batch]
    assert list(dict.fromkeys(asked)) == ["q3", "q1", "q0", "q2"]


def test_recipe(tiny, tmp_path, capsys):
    """The command line on a random model, which gets nothing right: all are kept, none can be learned."""
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    questions(3).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    from tars_trl.commands import score_questions

    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--num_samples", "2"]
    arguments += ["--k", "2", "--max_completion_length", "4", "--output_dir", str(tmp_path / "out")]
    score_questions.main(arguments)
    back = load_questions(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert back["key"][:] == ["q0", "q1", "q2"] and back["text_pass_at_k"][:] == [0.0] * 3
    lines = [json.loads(line) for path in (tmp_path / "out/.work").iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == 6 and all(len(line["correct"]) == len(line["complete"]) == 2 for line in lines)
    assert "3 of 3 questions kept" in (printed := capsys.readouterr().out) and "Dropped: none." in printed
    score_questions.main([*arguments, "--top", "1"])
    assert "Dropped: 2 cut by top." in capsys.readouterr().out
    with pytest.raises(ValueError, match="leaves none of 3 questions"):
        score_questions.main([*arguments, "--keep", "reachable"])
    refused = {
        "k": ("3", "pass@3 of 2 samples"),
        "temperature": ("0", "temperature=0.0 is out of range"),
        "keep": ("x", "keep='x'"),
        "order": ("random", "order='random'"),
    }
    for name, (value, message) in refused.items():
        with pytest.raises(SettingError, match=message):
            parse(ScoreSettings, args=[*arguments, f"--{name}", value])


@pytest.mark.slow
def test_two_processes_draw_the_same_samples_as_one(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    questions(5).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    found = []
    for processes in (1, 2):
        output = tmp_path / f"out{processes}"
        # `accelerate launch --cpu` starts one process unless mpirun is there.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        command += ["recipes/score_questions.py", "--model", tmp_path / "model", "--dataset", tmp_path / "data"]
        command += ["--num_samples", "2", "--k", "2", "--max_completion_length", "4", "--batch_size", "2"]
        command += ["--output_dir", output]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line for path in (output / ".work").iterdir() for line in path.read_text().splitlines()]
        found.append(sorted(lines))
        assert len(list((output / ".work").iterdir())) == 2 * processes
    assert found[0] == found[1]
