import math

import pytest
import torch

from tars_trl.grpo.metrics import total_rewards, twin_metrics

NAN = float("nan")
NAMES = ["accuracy_reward", "format_reward", "representation_alignment"]
REWARDS = torch.tensor(
    [
        [1.0, 1.0, 0.5], [0.0, 1.0, 0.5],  # question 0, spoken
        [1.0, 1.0, NAN], [1.0, 1.0, NAN],  # question 0, written
        [0.0, 0.0, 0.0], [0.0, 0.0, 0.0],  # question 1, spoken
        [NAN, 0.0, NAN], [0.0, 1.0, NAN],  # question 1, written; one was not scored for accuracy
    ]
)  # fmt: skip


def metrics(rewards=REWARDS, **options):
    arguments = {"group_size": 4, "modalities": "both", "correct": "accuracy_reward"} | options
    lengths, clipped = torch.arange(8), torch.tensor([False, True] + [False] * 6)
    return twin_metrics(rewards, torch.tensor([1.0, 0.5, 1.0]), NAMES, lengths, clipped, **arguments)


def test_each_modality_has_its_own_figures():
    found = metrics()
    assert found["speech/accuracy"] == 0.25 and found["text/accuracy"] == pytest.approx(2 / 3)
    assert found["speech/format"] == 0.5 and found["text/format"] == 0.75
    assert found["speech/reward"] == pytest.approx((2.0 + 1.0) / 4)
    assert found["speech/reward_std"] == pytest.approx(0.25) and found["speech/frac_reward_zero_std"] == 0.5
    assert found["text/frac_reward_zero_std"] == 0.5
    assert found["speech/completion_length"] == 2.5 and found["text/completion_length"] == 4.5
    assert found["speech/clipped_ratio"] == 0.25 and found["text/clipped_ratio"] == 0.0


def test_gap_and_recovery_rate():
    found = metrics()
    assert found["gap/accuracy"] == pytest.approx(2 / 3 - 0.25)
    assert found["gap/recovery_rate"] == pytest.approx(37.5)
    nothing = REWARDS.clone()
    nothing[:, 0] = 0.0
    assert math.isnan(metrics(nothing)["gap/recovery_rate"])


def test_one_modality_has_no_gap():
    found = metrics(modalities="speech")
    assert "gap/accuracy" not in found and not any(name.startswith("text/") for name in found)
    groups = torch.tensor([[2.0, 1.0, 1.5, 1.5], [0.0, 0.0, 0.0, 0.5]])  # of four now
    assert found["speech/reward_std"] == pytest.approx(groups.std(1, correction=0).mean().item())


def test_other_rewards_of_the_user():
    assert "speech/accuracy" not in metrics(correct="judge")


def test_rows_that_nothing_scored_have_no_total():
    total = total_rewards(torch.tensor([[NAN, NAN], [NAN, 2.0]]), torch.tensor([1.0, 0.5]))
    assert math.isnan(total[0]) and total[1] == 1.0
