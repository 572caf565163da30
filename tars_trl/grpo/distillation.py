"""Learning from the written twin token by token: the maths of cross-modal on-policy self-distillation.

A spoken completion y was sampled after hearing S; its question's written form is T. The teacher, the same model or the
one that training started from, reads T and says of every token of y how likely it finds it. What the student lacks
there is a dense target for the spoken half, with no label in it (X-OPD, arXiv 2603.24596, section on the cross-modality
teacher; TRL's `experimental.sdft` for text).

Pure functions over tensors. N is the number of rows, T of completion tokens, K of reward functions, H the hidden size,
V the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

THIRDS = ("first_third", "middle_third", "last_third")


def lesson_weights(
    spoken: Sequence[bool], right: Sequence[bool], group_size: int, *, weight: float, text_weight: float, gate: str
) -> Tensor:
    """How much the teacher's word counts in each row of all processes, (N,) float32; 0: the row is not taught.

    Args:
        spoken: for each of N rows, whether it is.
        right: for each, whether its completion is right.
        group_size: rows of a question, both twins together.
        weight: of spoken rows (`distillation_weight`).
        text_weight: of written rows (`distillation_text_weight`).
        gate: with `correct`, spoken rows count where a written completion of their question is right.
    """
    weights = []
    for row, heard in enumerate(spoken):
        group = slice(row - row % group_size, row - row % group_size + group_size)
        trusted = gate != "correct" or any(r and not s for r, s in zip(right[group], spoken[group], strict=True))
        weights.append(weight * trusted if heard else text_weight)
    return torch.tensor(weights, dtype=torch.float32)


def sampled_token_term(teacher_logps: Tensor, logps: Tensor, clip: float | None, one_sided: Tensor) -> Tensor:
    """What the teacher finds likelier: log pi(y_t | T, y_<t) - log pi(y_t | S, y_<t), (N, T), without gradient.

    Its mean over samples is minus the reverse divergence, KL(student || teacher), whose policy gradient it gives.

    Args:
        teacher_logps: (N, T), behind the written prompts.
        logps: (N, T), of the policy.
        clip: most nats either way; None for no limit.
        one_sided: (N,) bool, rows in which only tokens that the teacher finds likelier count (OPOD, arXiv 2607.20918).
    """
    term = teacher_logps.float() - logps.detach().float()
    if clip is not None:
        term = term.clamp(-clip, clip)
    return torch.where(one_sided.unsqueeze(1), term.clamp(min=0), term)


def full_logits_term(divergence: Tensor, clip: float | None) -> Tensor:
    """The divergence of each token (N, T) in the place of an advantage: of value zero, with its gradient downhill.

    A policy-gradient loss is minus the advantage times a ratio of 1, so it descends the divergence, under the loss's
    own masks and normalisation, and pushes no sampled token for it. A token's gradient is that of `clip` nats at most.
    """
    if clip is not None:
        divergence = divergence * (clip / divergence.detach().clamp(min=clip))
    return divergence.detach() - divergence


def divergence(
    states: Tensor,
    teacher_states: Tensor,
    counted: Tensor,
    head: torch.nn.Module,
    alpha: float,
    temperature: float,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Divergence of the next-token distributions over the vocabulary, (N, T) in nats; 0 where it is not counted.

    `alpha` 0 is KL(teacher || student), 1 KL(student || teacher), between them TRL's generalised Jensen-Shannon
    divergence. Computed by TRL's kernel in tiles of the vocabulary; the gradient goes to the student's states alone
    (and to the head, where that is trained).

    Args:
        states: (N, T, H) states that predict each token, of the student.
        teacher_states: (N, T, H), of the teacher.
        counted: (N, T) bool.
        head: of both; `weight` (V, H) and `bias`.
        alpha: 0 to 1.
        temperature: both distributions are taken at (`temperature` of the run).
        scale: the model's factor on its logits.
        softcap: the model's cap on them.
    """
    of_head = head.weight, head.bias
    of_teacher = tuple(part if part is None else part.detach() for part in of_head)
    values, _ = ChunkedDivergenceFunction.apply(
        states[counted], *of_head, teacher_states[counted], *of_teacher, alpha, temperature,
        scale, softcap, scale, softcap,
    )  # fmt: skip
    return torch.zeros(counted.shape, dtype=values.dtype, device=values.device).masked_scatter(counted, values)


def reward_terms(rewards: Tensor, weights: Tensor, size: int, advantages: Tensor) -> Tensor:
    """What each reward contributes to the advantages, (N, K), adding up to them; 0 in rows that no reward scored.

    Args:
        rewards: (N, K) of all processes; NaN where a function did not apply.
        weights: (K,).
        size: rows over which an advantage is centred (one twin of one question).
        advantages: (N,), as TRL made them: centred, maybe scaled.
    """
    scored = ~rewards.isnan().all(1, keepdim=True)
    given = (rewards.nan_to_num(0) * weights.to(rewards)).masked_fill(~scored, 0).view(-1, size, len(weights))
    number = scored.view(-1, size, 1).sum(1, keepdim=True).clamp(min=1)
    terms = (given - given.sum(1, keepdim=True) / number).flatten(0, 1).masked_fill(~scored, 0)
    total = terms.sum(1)
    scaled = torch.where(total.abs() > 1e-6, advantages / total, 1.0)  # `scale_rewards`
    return terms * scaled.unsqueeze(1)


# ---- Metrics: sums over tokens, which add up over micro-batches and processes --------------------------------------


def divergence_sums(values: Tensor, counted: Tensor) -> Tensor:
    """Sums and numbers (2, 3) of a value a token, by third of the completion that the token lies in.

    Args:
        values: (N, T).
        counted: (N, T) bool, true from the first token of a completion to its last, or nowhere in a row.
    """
    places = torch.arange(counted.size(1), device=counted.device)
    third = (3 * places // counted.sum(1, keepdim=True).clamp(min=1)).clamp(max=2)
    in_third = counted.unsqueeze(2) & (third.unsqueeze(2) == torch.arange(3, device=counted.device))  # (N, T, 3)
    return torch.stack([(values.detach().float().unsqueeze(2) * in_third).sum((0, 1)), in_third.float().sum((0, 1))])


def divergence_metrics(sums: Tensor, name: str) -> dict[str, float]:
    """Means of `divergence_sums` by name: over all tokens, and by third; those of no token are left out."""
    (total, *parts), (number, *numbers) = (torch.cat([row.sum(0, keepdim=True), row]).tolist() for row in sums)
    pairs = zip((name, *(f"{name}/{third}" for third in THIRDS)), (total, *parts), (number, *numbers), strict=True)
    return {key: value / count for key, value, count in pairs if count}


def advantage_sums(terms: Tensor, counted: Tensor) -> Tensor:
    """Of advantages that are sums of terms: (2, K + 1) sums of each term, and of it times the whole, then of 1.

    Args:
        terms: (N, T, K) what each contributes to a token's advantage.
        counted: (N, T) bool, whether a token counts.
    """
    terms = terms.detach().float() * counted.unsqueeze(2)
    number = counted.float().sum().expand(2, 1)
    return torch.cat([torch.stack([terms.sum((0, 1)), (terms * terms.sum(2, keepdim=True)).sum((0, 1))]), number], 1)


def advantage_shares(sums: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Share of each term in the variance of the advantages over tokens, adding up to 1; nothing where that is 0.

    A share is the term's covariance with the whole over the variance of the whole: it is negative where the term works
    against the others. What a term adds to all tokens alike moves nothing, and does not count.
    """
    number = sums[0, -1].clamp(min=1)
    mean, product = sums[:, :-1] / number
    covariance = product - mean * mean.sum()
    variance = covariance.sum()
    if not variance > 1e-12:
        return {}
    return dict(zip(names, (covariance / variance).tolist(), strict=True))
