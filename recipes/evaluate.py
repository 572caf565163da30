"""Accuracy, gap and recovery rate of a speech LLM or an adapter, by benchmark and modality, with intervals.

    accelerate launch recipes/evaluate.py --config recipes/evaluation/demo.yaml
    accelerate launch recipes/evaluate.py --model Qwen/Qwen2.5-Omni-7B --adapter runs/tars-qwen2.5-omni-7b \
        --tasks voicebench_mmsu,voicebench_openbookqa --modality both --log_samples true --output_path results
    python recipes/evaluate.py --compare results/before results/after

Files are those of lm-evaluation-harness (see tars_trl/evaluation/results.py). An interrupted run continues where it
stopped when it is started again; a finished one is repeated only with `--overwrite true`.
"""

from accelerate import PartialState

from tars_trl.evaluation.results import compare, read_results
from tars_trl.evaluation.run import evaluate
from tars_trl.evaluation.settings import EvaluationSettings
from tars_trl.settings import parse


def result_table(content: dict) -> str:
    """The figures of a results file as a text table, shares in percent."""
    lines = [f"{'task':<34}{'n':>6}{'accuracy, %':>24}{'WER, %':>9}{'no choice, %':>14}{'cut off, %':>12}{'tokens':>8}"]
    for name, figures in content["results"].items():
        accuracy = wer = missing = ""
        if "acc,none" in figures:
            low, high = 100 * figures["acc_ci_low,none"], 100 * figures["acc_ci_high,none"]
            accuracy = f"{100 * figures['acc,none']:.1f} [{low:.1f}, {high:.1f}]"
        if "wer,none" in figures:
            wer = f"{100 * figures['wer,none']:.1f}"
        if "extraction_failure,none" in figures:
            missing = f"{100 * figures['extraction_failure,none']:.1f}"
        end = f"{100 * figures.get('truncated,none', 0):>12.1f}{figures.get('mean_tokens,none', 0):>8.0f}"
        lines.append(f"{name:<34}{figures['sample_len']:>6}{accuracy:>24}{wer:>9}{missing:>14}{end}")
    for name, pair in (content["pairs"] | content["averages"]).items():
        low, high = (100 * end for end in pair.get("gap_bootstrap") or pair["gap_interval"])
        mrr = "undefined" if pair["mrr"] is None else f"{pair['mrr']:.1f} %"
        both = [f"{100 * pair[f'{modality}_accuracy']:.1f} % {modality}" for modality in ("speech", "text")]
        test = f"McNemar p = {pair['mcnemar']['p_value']:.2g}" if "mcnemar" in pair else ", ".join(both)
        lines.append(
            f"{name}: gap {100 * pair['gap']:.1f} points [{low:.1f}, {high:.1f}], {test}, "
            f"MRR {mrr} of {pair['mrr_denominator']}"
        )
    return "\n".join(lines)


def comparison_table(table: dict) -> str:
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
    """Evaluate, or compare two evaluations; print the table."""
    (settings,) = parse(EvaluationSettings, args=args)
    if settings.compare:
        print(comparison_table(compare(*settings.compare, seed=settings.seed)))
        return
    path = evaluate(settings)
    if PartialState().is_main_process:
        print(result_table(read_results(path)), f"\n{path}", sep="\n")


if __name__ == "__main__":
    main()
