r"""Accuracy, gap and recovery of a speech LLM or an adapter, by benchmark and modality, with intervals.

    tars-trl evaluate --model MODEL --adapter runs/mine --tasks voicebench_mmsu,voicebench_openbookqa \
        --log_samples true --output_dir results
    tars-trl evaluate --model MODEL --tasks mine=my/questions --output_dir results
    tars-trl evaluate --tasks list
    tars-trl evaluate --compare results/before results/after
    accelerate launch -m tars_trl.commands.evaluate …    # several processes share the questions

Files are those of lm-evaluation-harness (see tars_trl/evaluation/results.py). An interrupted run continues where it
stopped when it is started again; a finished one is repeated only with `--overwrite true`.
"""

from typing import Any

from accelerate import PartialState

from ..evaluation.metrics import with_interval
from ..evaluation.results import paired_difference, read_results
from ..evaluation.run import evaluate
from ..evaluation.settings import EvaluationSettings
from ..evaluation.tasks import task_table
from ..settings import parse, run


def result_table(content: dict[str, Any]) -> str:
    """The figures of a results file as a text table, shares in percent."""
    lines = [f"{'task':<34}{'n':>6}{'accuracy, %':>24}{'WER, %':>9}{'no choice, %':>14}{'cut off, %':>12}{'tokens':>8}"]
    for name, figures in content["results"].items():
        accuracy = ""
        if "acc,none" in figures:
            accuracy = with_interval(figures["acc,none"], [figures[f"acc_ci_{end},none"] for end in ("low", "high")])
        wer, missing = (
            f"{100 * figures[key]:.1f}" if key in figures else "" for key in ("wer,none", "extraction_failure,none")
        )
        end = f"{100 * figures.get('truncated,none', 0):>12.1f}{figures.get('mean_tokens,none', 0):>8.0f}"
        lines.append(f"{name:<34}{figures['sample_len']:>6}{accuracy:>24}{wer:>9}{missing:>14}{end}")
    for name, pair in (content["pairs"] | content["averages"]).items():
        accuracies = [f"{100 * pair[f'{modality}_accuracy']:.1f} % {modality}" for modality in ("speech", "text")]
        test = f"McNemar p = {pair['mcnemar']['p_value']:.2g}" if "mcnemar" in pair else ", ".join(accuracies)
        rates = "recovery " + ("undefined" if pair["recovery"] is None else f"{pair['recovery']:.1f} % of own text")
        if pair["mrr"] is not None:
            rates += f", MRR {pair['mrr']:.1f} % of the base model's text ({pair['reference_accuracy']:.2f} %)"
        lines.append(f"{name}: gap {with_interval(pair['gap'], pair['gap_interval'], ' points')}, {test}, {rates}")
    return "\n".join(lines)


def comparison_table(table: dict[str, Any]) -> str:
    """Two evaluations side by side, shares in percent."""
    lines = [f"{'task':<34}{'n':>6}{'first, %':>10}{'second, %':>11}{'difference, points':>26}{'McNemar p':>11}"]
    for name, row in table.items():
        low, high = (100 * end for end in row["difference_interval"])
        difference = f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(
            f"{name:<34}{row['questions']:>6}{100 * row['first']:>10.1f}{100 * row['second']:>11.1f}{difference:>26}"
            f"{row['mcnemar']['p_value']:>11.2g}"
        )
        if row["only_in_one"]:
            lines.append(f"  {row['only_in_one']} questions that only one of the two answered are left out")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """Evaluate, compare two evaluations, or list the tasks; print the table."""
    (settings,) = parse(EvaluationSettings, args=args, description=__doc__)
    if settings.tasks == ["list"]:
        print(task_table())
    elif settings.compare:
        first, second = settings.compare
        print(comparison_table(paired_difference(first, second, seed=settings.seed)))
    else:
        path = evaluate(settings)
        if PartialState().is_main_process:
            print(result_table(read_results(path)), f"\n{path}", sep="\n")


if __name__ == "__main__":
    run(main)
