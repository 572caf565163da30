"""pass@k of a model on each question, spoken and written: what to train on, and in which order.

    tars-trl score-questions --model MODEL --dataset my/questions --keep learnable --output_dir runs/scored
    tars-trl score-questions ... --order largest_gap --top 200    # active selection: where hearing costs most

Writes OUT/data/<split>-00000-of-00001.parquet: the questions that are kept, with their scores (see
tars_trl/sampling/scores.py), ordered by the column `curriculum`. An interrupted run is continued by the same command,
and another selection from the same samples costs nothing.
"""

from accelerate import PartialState

from ..sampling.scores import ScoreSettings, count_drops, score_questions
from ..sampling.shared import spell_counts
from ..settings import parse, run


def main(args: list[str] | None = None) -> None:
    """Sample, score, select, write; then print the means."""
    (settings,) = parse(ScoreSettings, args=args, description=__doc__)
    scores, numbers = score_questions(settings)
    if not PartialState().is_main_process:
        return
    for name in ("speech_accuracy", "text_accuracy", "speech_pass_at_k", "text_pass_at_k", "gap"):
        mean = sum(columns[name] for columns in scores) / len(scores)
        selected = sum(scores[number][name] for number in numbers) / len(numbers)
        print(
            f"{name.replace('_at_k', f'@{settings.k}'):<18} {100 * mean:6.1f} % of all, {100 * selected:6.1f} % of kept"
        )
    kept = f"{len(numbers)} of {len(scores)} questions kept ({settings.keep})"
    print(f"{kept}, {settings.order}: {settings.output_dir}/data")
    print(f"Dropped: {spell_counts(count_drops(scores, settings.keep, len(numbers)))}.")


if __name__ == "__main__":
    run(main)
