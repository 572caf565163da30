"""pass@k of a model on each question, spoken and written: what to train on, and in which order.

    accelerate launch recipes/score_questions.py --model recipes/demo/tiny-omni --dataset recipes/demo/questions \
        --max_new_tokens 64 --keep learnable --output runs/scored
    python recipes/score_questions.py ... --order largest_gap --top 200    # active selection: where hearing costs most

Writes OUT/data/<split>-00000-of-00001.parquet: the questions that are kept, with their scores (see
tars_trl/data/scores.py), ordered by the column `curriculum`. An interrupted run is continued by the same command, and
another selection from the same samples costs nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from tars_trl.data import load_questions
from tars_trl.data.audio import check_audio
from tars_trl.data.journal import rows_digest
from tars_trl.models.loading import identity, load_speech_llm, resolve
from tars_trl.sampling.scores import MODALITIES, Samples, Sampling, dropped, sampled, score, selected, write_scored
from tars_trl.settings import parse, setting


@dataclass
class ScoreSettings:
    """Settings of a scoring run."""

    model: str = setting("", "Hub id or folder of a speech LLM, or of an adapter that names its base model.")
    adapter: str | None = setting(None, "Hub id or folder of a LoRA adapter for `model`.")
    revision: str | None = setting(None, "Commit, tag or branch of `model` on the hub.")
    dtype: str = setting("auto", "auto (as saved; float32 on a CPU), float32, bfloat16 or float16.")
    use_cpu: bool = setting(False, "Run on the CPU although there is a GPU.")
    dataset: str = setting("", "Questions: hub id, folder or file.")
    split: str = setting("train", "Split to score.")
    limit: int | None = setting(None, "This many questions only, drawn by seed.")
    system_prompt: str | None = setting(None, "Instead of the rows' own.")
    num_samples: int = setting(8, "Completions of each question in each modality.")
    k: int = setting(4, "Of pass@k: in training a question has num_generations / 2 completions of each modality.")
    max_new_tokens: int = setting(1024, "Most tokens of a completion (paper: 1024).")
    temperature: float = setting(1.0, "Of sampling (paper: 1.0).")
    batch_size: int = setting(4, "Questions in a forward pass, per process; each takes num_samples rows.")
    seed: int = setting(0, "Of the draw and of sampling.")
    max_audio_seconds: float = setting(30.0, "Longer clips are refused.")
    keep: str = setting(
        "all", "all; reachable: a written sample is right and complete; learnable: and not all are right."
    )
    order: str = setting("easy_first", "easy_first (curriculum) or largest_gap (active selection).")
    top: int | None = setting(None, "Keep this many questions, the first ones in that order.")
    output: str = setting("runs/scored", "Folder of the scored questions.")

    def __post_init__(self) -> None:
        if not self.model or not self.dataset:
            raise ValueError("model or dataset is not given: nothing can be scored. Pass --model and --dataset.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: all samples of a question would be the same. Use 1.0.")
        wrong, right = (Samples([value] * self.num_samples, [True] * self.num_samples) for value in (False, True))
        selected([score(wrong, right, self.k, self.order)], self.keep, self.top)  # refused now, not at the end


def main(args: list[str] | None = None) -> None:
    """Sample, score, select, write."""
    (settings,) = parse(ScoreSettings, args=args)
    # Processes wait for the slowest one. Without a GPU accelerate starts several only if it is told so.
    state = PartialState(cpu=settings.use_cpu or not torch.accelerator.is_available(), timeout=timedelta(hours=24))
    rows = load_questions(
        settings.dataset,
        settings.split,
        system_prompt=settings.system_prompt,
        limit=settings.limit,
        seed=None if settings.limit is None else settings.seed,
    )
    rows = check_audio(rows, max_seconds=settings.max_audio_seconds)
    model_name, adapter = resolve(settings.model, settings.adapter)
    described = {"model": identity(model_name, settings.revision), "rows": rows_digest(rows, with_audio=True)}
    described |= {
        "adapter": identity(adapter, file="adapter_config.json") if adapter else None,
        "dtype": settings.dtype,
    }
    model, processor = load_speech_llm(
        settings.model, settings.adapter, revision=settings.revision, dtype=settings.dtype, device=state.device
    )
    sampling = Sampling(
        settings.num_samples, settings.max_new_tokens, settings.batch_size, settings.seed, settings.temperature
    )
    output = Path(settings.output).expanduser()
    heard, read = (
        sampled(model, processor, rows, modality, sampling, output / ".work", described) for modality in MODALITIES
    )
    if not state.is_main_process:
        return
    scores = [score(*pair, settings.k, settings.order) for pair in zip(heard, read, strict=True)]
    numbers = selected(scores, settings.keep, settings.top)
    write_scored(rows, scores, numbers, output / "data" / f"{settings.split}-00000-of-00001.parquet")
    for name in ("speech_accuracy", "text_accuracy", "speech_pass_at_k", "text_pass_at_k", "gap"):
        mean = sum(found[name] for found in scores) / len(scores)
        kept = sum(scores[number][name] for number in numbers) / len(numbers)
        print(f"{name.replace('_at_k', f'@{settings.k}'):<18} {100 * mean:6.1f} % of all, {100 * kept:6.1f} % of kept")
    print(f"{len(numbers)} of {len(scores)} questions kept ({settings.keep}), {settings.order}: {output / 'data'}")
    reasons = dropped(scores, settings.keep, len(numbers))
    print(f"Dropped: {', '.join(f'{count} {reason}' for reason, count in reasons.most_common()) or 'none'}.")


if __name__ == "__main__":
    main()
