import logging
from types import SimpleNamespace

import pytest

from tars_trl.grpo.callbacks import HealthCallback

STATE = SimpleNamespace(is_world_process_zero=True, global_step=1)
WELL = {
    "frac_reward_zero_std": 0.2,
    "completions/clipped_ratio": 0.1,
    "alignment/no_reference": 0.3,
    "speech/accuracy": 0.5,
    "rewards/representation_alignment/mean": 0.6,
}


def warnings(caplog, logs, steps=5):
    callback = HealthCallback(steps)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="tars_trl.grpo.callbacks"):
        for log in logs:
            callback.on_log(None, STATE, None, log)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("ill", "name"),
    [
        ({"frac_reward_zero_std": 1.0}, "no signal"),
        ({"completions/clipped_ratio": 1.0}, "all truncated"),
        ({"alignment/no_reference": 1.0}, "no reference"),
    ],
)
def test_a_lasting_illness_is_told_once(caplog, ill, name):
    told = warnings(caplog, [WELL | ill] * 30)
    assert len(told) == 1 and name in told[0]
    assert not warnings(caplog, ([WELL | ill] * 4 + [WELL]) * 6)  # never five in a row


def test_alignment_that_rises_while_accuracy_falls(caplog):
    def run(accuracy_slope, alignment_slope):
        return [
            WELL
            | {
                "speech/accuracy": 0.6 + accuracy_slope * step,
                "rewards/representation_alignment/mean": 0.6 + alignment_slope * step,
            }
            for step in range(10)
        ]

    (told,) = warnings(caplog, run(-0.04, 0.02))
    assert "drifting apart" in told
    assert not warnings(caplog, run(0.02, 0.02)) and not warnings(caplog, run(-0.04, 0.0))


def test_a_teacher_who_is_left(caplog):
    """Told where the divergence rises while accuracy falls; and with a teacher equal rewards are no want of signal."""

    def run(accuracy_slope, divergence_slope):
        moving = {"speech/accuracy": accuracy_slope, "distillation/kl": divergence_slope}
        return [WELL | {name: 0.6 + slope * step for name, slope in moving.items()} for step in range(10)]

    (told,) = warnings(caplog, run(-0.04, 0.02))
    assert "leaving the teacher" in told
    assert not warnings(caplog, run(0.02, 0.02)) and not warnings(caplog, run(-0.04, -0.02))
    assert not warnings(caplog, [WELL | {"frac_reward_zero_std": 1.0, "distillation/kl": 0.1}] * 30)


def test_health_and_other_logs_are_silent(caplog):
    assert not warnings(caplog, [WELL] * 30)
    assert not warnings(caplog, [{"train_runtime": 1.0}, None] * 20)
    assert not warnings(caplog, [WELL | {"speech/accuracy": None}] * 30)
