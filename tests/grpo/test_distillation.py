"""The maths of the written teacher against plain formulas, on small tensors."""

import pytest
import torch
from torch.nn.functional import kl_div

from tars_trl.grpo import distillation

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_lesson_weights_by_gate():
    spoken = [True, True, False, False] * 2
    right = [True, False, False, False, False, False, False, True]  # the second question has a right written one
    given = {"weight": 0.5, "text_weight": 0.25}
    always = distillation.lesson_weights(spoken, right, 4, **given, gate="always")
    assert always.tolist() == [0.5, 0.5, 0.25, 0.25] * 2
    assert distillation.lesson_weights(spoken, right, 4, **given, gate="one_sided").equal(always)
    gated = distillation.lesson_weights(spoken, right, 4, **given, gate="correct")
    assert gated.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25]


def test_sampled_token_term(generator):
    teacher, student = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    teacher[0, 0], student[1, 1] = 9.0, 9.0
    student.requires_grad_()
    term = distillation.sampled_token_term(teacher, student, 2.0, torch.tensor([False, True]))
    for row in range(2):
        for token in range(3):
            expected = min(2.0, max(-2.0, (teacher - student)[row, token].item()))
            assert term[row, token].item() == pytest.approx(max(expected, 0) if row else expected, abs=1e-6)
    assert not term.requires_grad and term[0, 0] == 2 and term[1, 1] == 0
    unlimited = distillation.sampled_token_term(teacher, student, None, torch.tensor([False, False]))
    torch.testing.assert_close(unlimited, (teacher - student).detach())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_full_logits_descend_the_divergence(generator, alpha):
    """Value and gradient are those of the divergence by its definition, the gradient of at most `clip` nats."""
    head = torch.nn.Linear(8, 30, bias=False)
    states, teacher_states = (3 * torch.randn(3, 6, 8, generator=generator) for _ in range(2))
    states.requires_grad_()
    values = distillation.divergence(states, teacher_states, MASK, head, alpha, temperature=0.7)
    student, teacher = ((head(part) / 0.7).log_softmax(-1) for part in (states, teacher_states))
    teacher = teacher.detach()
    mean = (alpha * teacher.exp() + (1 - alpha) * student.exp()).log()
    expected = {
        0.0: lambda: kl_div(student, teacher, reduction="none", log_target=True).sum(-1),
        1.0: lambda: kl_div(teacher, student, reduction="none", log_target=True).sum(-1),
    }.get(alpha, lambda: (
        alpha * kl_div(mean, teacher, reduction="none", log_target=True)
        + (1 - alpha) * kl_div(mean, student, reduction="none", log_target=True)
    ).sum(-1))()  # fmt: skip
    torch.testing.assert_close(values, expected.masked_fill(~MASK, 0), rtol=1e-5, atol=1e-5)

    clip = float(values[MASK].median())
    term = distillation.full_logits_term(values, clip)
    assert term.abs().max() == 0
    (gradient,) = torch.autograd.grad(-term.sum(), states, retain_graph=True)
    scale = (clip / expected.detach()).clamp(max=1)
    (wanted,) = torch.autograd.grad((expected * scale)[MASK].sum(), states)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    (whole,) = torch.autograd.grad(values.sum(), states)
    assert (whole - gradient).abs().max() > 1e-3  # without the limit it would be another


def test_reward_terms_add_up(generator):
    """As TRL makes advantages: weighted sums, centred over the scored rows of a group, maybe divided by the spread."""
    rewards = torch.randn(8, 3, generator=generator)
    rewards[4:, 2] = torch.nan
    rewards[1] = torch.nan
    weights = torch.tensor([1.0, 0.5, 2.0])
    total = (rewards * weights).nansum(1)
    total[1] = torch.nan
    groups = total.view(2, 4)
    centred = (groups - groups.nanmean(1, keepdim=True)).flatten().nan_to_num(0)
    for advantages in (centred, centred / torch.tensor([2.0, 3.0]).repeat_interleave(4)):
        terms = distillation.reward_terms(rewards, weights, 4, advantages)
        torch.testing.assert_close(terms.sum(1), advantages)
        assert terms[1].abs().max() == 0 and terms[4:, 2].abs().max() == 0
    expected = 0.5 * (rewards[4:, 1] - rewards[4:, 1].mean()) / 3.0
    torch.testing.assert_close(terms[4:, 1], expected)


def test_shares_of_the_variance(generator):
    """Of terms without correlation the shares of their variances; over parts as over the whole; a constant has none."""
    terms = torch.randn(20_000, 4, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.0]) + torch.tensor([0, 0, 7.0])
    counted = torch.rand(20_000, 4, generator=generator) < 0.7
    whole = distillation.advantage_sums(terms, counted)
    parts = sum(distillation.advantage_sums(terms[part], counted[part]) for part in (slice(50), slice(50, None)))
    shares = distillation.advantage_shares(parts, ["a", "b", "c"])
    assert shares == pytest.approx(distillation.advantage_shares(whole, ["a", "b", "c"]), abs=1e-3)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == pytest.approx({"a": 0.2, "b": 0.8, "c": 0.0}, abs=0.01)  # 80,000 draws: 0.002
    assert distillation.advantage_shares(0 * whole, ["a", "b", "c"]) == {}


def test_means_by_third():
    values = torch.arange(18.0).view(3, 6)
    metrics = distillation.divergence_metrics(distillation.divergence_sums(values, MASK), "kl")
    # Two tokens a third in the first row; in the second the two are of the first and of the middle third.
    assert metrics == pytest.approx({
        "kl": (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7) / 8,
        "kl/first_third": (0 + 1 + 6) / 3, "kl/middle_third": (2 + 3 + 7) / 3, "kl/last_third": (4 + 5) / 2,
    })  # fmt: skip
    assert distillation.divergence_metrics(torch.zeros(2, 3), "kl") == {}
