"""The gap as a measured curve: what is logged while a twin trainer runs, and that training does not notice."""

import json

import pytest
import torch
from trl.distributed import DistributedBackend

from tars_trl.data.answers import extract_strict
from tars_trl.evaluation.callback import EvaluationCallback
from tars_trl.sampling.complete import complete
from tests.conftest import questions

FIGURES = {f"eval_{m}/{f}_greedy" for m in ("speech", "text") for f in ("accuracy", "unreadable", "clipped", "tokens")}


@pytest.fixture
def readable(monkeypatch):
    """Read a choice out of what a random model writes: its length modulo 5, none at 4."""

    def read(text, options=None):
        return len(text) % 5 if len(text) % 5 < 4 else None

    monkeypatch.setattr("tars_trl.evaluation.callback.extract_strict", read)
    return read


def measured(trainer):
    return [line for line in trainer.state.log_history if "eval_gap/accuracy_greedy" in line]


def test_curve_is_logged_and_right(make_trainer, readable, tmp_path):
    """Before the first step, every second one, and after the last; the last line is what the trained model answers."""
    trainer = make_trainer(max_steps=3)
    rows = list(questions(6))
    trainer.add_callback(EvaluationCallback(trainer, rows, steps=2, batch_size=4))
    trainer.train()
    lines = measured(trainer)
    assert [line["step"] for line in lines] == [0, 2, 3]
    assert all(set(line) >= FIGURES for line in lines)
    trainer.save_state()
    saved = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [line for line in saved if "eval_gap/accuracy_greedy" in line] == lines
    for modality in ("speech", "text"):
        done = list(complete(trainer.model, trainer.processing_class, rows, modality, max_completion_length=8))
        share = sum(readable(c.text) == row["answer_index"] for c, row in zip(done, rows, strict=True)) / 6
        assert lines[-1][f"eval_{modality}/accuracy_greedy"] == pytest.approx(share)
        assert lines[-1][f"eval_{modality}/tokens_greedy"] == pytest.approx(sum(c.tokens for c in done) / 6)
    last = lines[-1]
    gap = last["eval_text/accuracy_greedy"] - last["eval_speech/accuracy_greedy"]
    assert last["eval_gap/accuracy_greedy"] == pytest.approx(gap)


def test_training_does_not_notice(make_trainer):
    """The same weights and the same training lines with and without it: random state, modes and metrics are left."""
    runs = []
    for steps in (None, 1):
        trainer = make_trainer(max_steps=2, output=f"out-{steps}", logging_steps=2, lora_dropout=0.2)
        if steps:
            trainer.add_callback(EvaluationCallback(trainer, questions(2), steps=steps))
        trainer.train()
        weights = {name: w.detach().clone() for name, w in trainer.model.named_parameters() if w.requires_grad}
        lines = [line for line in trainer.state.log_history if "loss" in line]
        runs.append((weights, lines))
    (plain, lines), (watched, same) = runs
    for name, weight in plain.items():
        torch.testing.assert_close(weight, watched[name], rtol=0, atol=0)
    assert len(lines) == len(same) == 1
    for name in lines[0].keys() - {"step_time"}:
        assert lines[0][name] == pytest.approx(same[0][name], nan_ok=True), name


def test_recovery_rate_is_left_out_where_it_is_undefined(make_trainer):
    """A random model answers nothing: accuracy 0 in both modalities, everything unreadable."""
    trainer = make_trainer()
    figures = EvaluationCallback(trainer, questions(2)).measure()
    assert figures["eval_text/accuracy_greedy"] == 0 and figures["eval_speech/unreadable_greedy"] == 1
    assert "eval_gap/recovery_rate_greedy" not in figures
    assert extract_strict("") is None


def test_nothing_to_measure_is_refused(make_trainer):
    with pytest.raises(ValueError, match="0 rows every 50 steps"):
        EvaluationCallback(make_trainer(), [])


@pytest.mark.parametrize(("kind", "name"), [("is_fsdp", "FSDP"), ("is_zero3", "DeepSpeed ZeRO-3")])
def test_parameters_spread_over_processes_are_refused(make_trainer, monkeypatch, kind, name):
    trainer = make_trainer()
    monkeypatch.setattr(DistributedBackend, kind, True)
    with pytest.raises(ValueError, match=f"runs under {name}.*tars-trl evaluate"):
        EvaluationCallback(trainer, questions(2))
