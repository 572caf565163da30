"""pass@k of a model on each question, spoken and written: what to train on, and in which order.

    accelerate launch recipes/score_questions.py --model recipes/demo/tiny-omni --dataset recipes/demo/questions \
        --max_completion_length 64 --keep learnable --output_dir runs/scored
    python recipes/score_questions.py ... --order largest_gap --top 200    # active selection: where hearing costs most

Writes OUT/data/<split>-00000-of-00001.parquet: the questions that are kept, with their scores (see
tars_trl/sampling/scores.py), ordered by the column `curriculum`. An interrupted run is continued by the same command,
and another selection from the same samples costs nothing.
"""

from accelerate import PartialState

from tars_trl.sampling.scores import ScoreSettings, count_drops, score_questions
from tars_trl.sampling.shared import spell_counts
from tars_trl.settings import parse, run


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
