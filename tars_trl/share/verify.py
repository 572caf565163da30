"""Does an exported folder answer as the trained model did? Greedy answers and logits, compared over two processes.

The trained model (adapter on base) answers a spoken and a written question here; then a fresh process loads the
exported folder alone and answers them too. Both compute in float32, so that what differs is what the folder holds.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import Modality
from ..errors import ExportError
from ..models import architecture_of
from ..models.loading import load_speech_llm
from ..models.prompting import base_of, heard, prompt_batch, twin_prompt
from ..sampling.complete import complete

# Largest logit difference over the spread (standard deviation) of the trained model's logits, by the type the weights
# are stored in. Measured on three seeds of both tiny models: float32 3e-6, float16 0.003, bfloat16 0.018. Fifteen times
# that is allowed for half precision, since a model of more layers rounds more often.
TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
# Largest share of what training changed in the logits (root mean square) that an export may lose.
LOST_SHARE = 0.5
# Training that moved the logits by less than this share of their spread cannot be told from rounding.
NO_EFFECT = 1e-4

Questions = Sequence[tuple[Modality, dict[str, Any]]]


@dataclass(frozen=True)
class Answer:
    key: str
    modality: Modality
    ids: list[int]
    """Its tokens, the end token included."""
    text: str
    logits: Tensor
    """(tokens, vocabulary), float32: what the model would have said at each token of the answer, teacher-forced."""


def greedy_answers(
    model: Any,
    processor: Any,
    questions: Questions,
    max_completion_length: int = 32,
    forced: Sequence[Sequence[int]] | None = None,
) -> list[Answer]:
    """Answer each question alone, greedily.

    Args:
        questions: modality and row (schema of `tars_trl.data`) of each question.
        forced: answers whose tokens the logits are taken at; None for the model's own.
    """
    model.eval()
    length, answers = max_completion_length, []
    for number, (modality, row) in enumerate(questions):
        (own,) = complete(model, processor, [row], modality, max_completion_length=length)
        at = own.ids if forced is None else forced[number]
        (logits,) = forced_logits(model, processor, [(modality, row)], [at])
        answers.append(Answer(own.key, modality, list(own.ids), own.text, logits))
    return answers


@torch.no_grad()
def forced_logits(model: Any, processor: Any, questions: Questions, answers: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits (tokens, vocabulary) in float32 at each token of an answer to each question, teacher-forced."""
    architecture = architecture_of(base_of(model).config.model_type)
    logits = []
    for (modality, row), ids in zip(questions, answers, strict=True):
        prompt = twin_prompt(architecture, processor, row, modality)
        batch = prompt_batch(model, [prompt], processor.tokenizer.pad_token_id, [ids])
        with heard(model, batch.clips):
            output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        logits.append(output.logits[0, batch.prompt_width - 1 : -1].float().cpu())
    return logits


def untrained_logits(model: Any, processor: Any, questions: Questions, answers: Sequence[Answer]) -> list[Tensor]:
    """Logits of the same answers with the adapter off; those of the model itself if it has none."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        return forced_logits(model, processor, questions, [answer.ids for answer in answers])


def _answers_of_folder(
    folder: str, base: str | None, model_revision: str | None, questions: Questions, *rest: Any
) -> list[Answer]:
    place = (folder, None) if base is None else (base, folder)
    model, processor = load_speech_llm(*place, model_revision=model_revision, dtype="float32")
    return greedy_answers(model, processor, questions, *rest)


def verify_folder(
    folder: str,
    questions: Questions,
    expected: Sequence[Answer],
    *,
    untrained: Sequence[Tensor] | None = None,
    dtype: str = "float32",
    max_completion_length: int = 32,
    base: str | None = None,
    model_revision: str | None = None,
) -> dict[str, float]:
    """Load `folder` in a fresh process, let it answer, and compare.

    Args:
        folder: what was exported.
        expected: answers of the trained model to `questions`, from `greedy_answers`.
        untrained: logits from `untrained_logits`; None where the adapter cannot be told from its base.
        dtype: type the folder's weights are stored in; it sets the tolerance, see `TOLERANCES`.
        max_completion_length: as it was for `expected`.
        base: base model of an adapter's folder; None for the one it names.
        model_revision: of that base on the hub.

    Returns:
        `logits`, the largest difference over the spread of the logits, its `tolerance`, and `lost`, the share of the
        training's effect that is gone (only with `untrained` and where there is an effect).

    Raises:
        ExportError: the folder answers otherwise, or its logits differ by more than the tolerance.
    """
    arguments = (folder, base, model_revision, questions, max_completion_length, [answer.ids for answer in expected])
    # A fresh interpreter: nothing of the models in this process can leak into the answers.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        exported = pool.submit(_answers_of_folder, *arguments).result()
    return check_answers(expected, exported, untrained, dtype)


def check_answers(
    expected: Sequence[Answer], exported: Sequence[Answer], untrained: Sequence[Tensor] | None, dtype: str
) -> dict[str, float]:
    """What `verify_folder` asks of the answers, as a pure function."""
    tolerance = TOLERANCES[dtype]
    worst, lost = 0.0, 0.0
    for number, (trained, other) in enumerate(zip(expected, exported, strict=True)):
        what = f"{trained.modality} question {trained.key!r}"
        spread = trained.logits.std()
        difference = trained.logits - other.logits
        largest = (difference.abs().max() / spread).item()
        if not largest <= tolerance:  # also where it is not a number
            raise ExportError(
                f"The logits of the exported model differ from the trained one's by {largest:.2g} of their spread on "
                f"the {what}; {tolerance:g} is allowed for {dtype}. It would not be the model that was trained. "
                "Check that base and revision are those of the training and export again, if need be in float32."
            )
        if trained.ids != other.ids and not _near_tie(trained, other, tolerance * spread):
            raise ExportError(
                f"The exported model answers the {what} with {other.text!r}, the trained one with {trained.text!r}. "
                "Check that the processor and the generation settings in the folder are those of the training."
            )
        worst = max(worst, largest)
        effect = torch.zeros(()) if untrained is None else (trained.logits - untrained[number]).square().mean().sqrt()
        share = (difference.square().mean().sqrt() / effect).item() if effect > NO_EFFECT * spread else 0.0
        if share > LOST_SHARE:
            raise ExportError(
                f"{share:.0%} of what training changed in the logits of the {what} is gone in the exported model; "
                f"{LOST_SHARE:.0%} is allowed. {dtype} is too coarse for so small a change, or the adapter was not "
                "merged. Export the adapter, or with dtype float32."
            )
        lost = max(lost, share)
    return {"logits": worst, "tolerance": tolerance, "lost": lost}


def _near_tie(trained: Answer, exported: Answer, allowed: Tensor) -> bool:
    """Whether the answers part at a token where the trained model itself was undecided between the two."""
    for place, (one, other) in enumerate(zip(trained.ids, exported.ids, strict=False)):
        if one != other:
            return bool(trained.logits[place, one] - trained.logits[place, other] <= 2 * allowed)
    return False
