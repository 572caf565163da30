r"""Where speech and text part inside a model: layer-wise similarity under the spoken and the written prompt.

    python recipes/analyze_drift.py --models before=recipes/demo/tiny-omni after=runs/demo --output runs/demo/drift

For each model its own written completions (greedy, or those of --completions) are fed behind both prompts and compared
layer by layer, token by token and pooled (paper, figure 2). Left in the output folder: `MODEL/layer_stats.json` (keys
of the published files) and `MODEL/layer_stats_pooled.json`, `layer_sets.json`, `drift.png`. Files of other models join
the figure with `--stats paper=layer_stats.json`. Figure 3 is drawn from evaluations of runs that aligned different
layers: results of recipes/evaluate.py (files or folders), result.json of recipes/compare.py, summary.json of the demo.

    python recipes/analyze_drift.py --output runs/layers \
        --layer_sets shallow=runs/compare/tars_shallow-seed0/result.json all=runs/results/runs__all
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tars_trl import load_questions
from tars_trl.evaluation.drift import Drift, layer_set_stats, layer_stats, measure_drift, read_layer_stats
from tars_trl.models.loading import load_speech_llm
from tars_trl.report.frames import read_pair
from tars_trl.report.plots import plot_drift, plot_layer_sets
from tars_trl.sampling.complete import complete


def named(text: str) -> tuple[str, str]:
    """NAME=VALUE of a command line."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} has no name to stand in the figure. Write NAME=PATH.")
    return name, value


def given_completions(path: Path) -> dict[str, str]:
    """Written completions by key: a samples file of recipes/evaluate.py, or .jsonl lines with `key` and `text`."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    written = [line for line in lines if line.get("modality", "text") == "text"]
    texts = {line.get("key"): line["resps"][0][0] if "resps" in line else line.get("text") for line in written}
    if not texts or None in texts or None in texts.values():
        raise SystemExit(
            f"{path} holds {len(written)} written completions, of which some have no key or no text. Give a "
            "samples_*_text_*.jsonl of recipes/evaluate.py, or lines with key and text."
        )
    return texts


def analyze(name: str, path: str, rows: list[dict[str, Any]], args: argparse.Namespace) -> Drift:
    """Load one model, complete the questions in writing, compare."""
    device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    model, processor = load_speech_llm(path, revision=args.revision, dtype=args.dtype, device=device)
    if args.completions:
        completions = given_completions(args.completions)
    else:
        options = {"batch_size": 4 * args.batch_size, "max_new_tokens": args.max_new_tokens}
        written = tqdm(complete(model, processor, rows, "text", **options), f"{name}, completing", len(rows))
        completions = {completion.key: completion.text for completion in written}
    with tqdm(desc=f"{name}, comparing", total=len(rows)) as bar:
        return measure_drift(model, processor, rows, completions, batch_size=args.batch_size, on_batch=bar.update)


def main() -> None:
    """Measure, write the files, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", type=named, default=[], metavar="NAME=MODEL_OR_ADAPTER")
    parser.add_argument("--revision", help="of the base models on the hub, if not the one that an adapter's run names")
    parser.add_argument("--stats", nargs="*", type=named, default=[], metavar="NAME=layer_stats.json")
    parser.add_argument("--layer_sets", nargs="*", type=named, default=[], metavar="NAME=RESULTS")
    parser.add_argument("--questions", default="recipes/demo/questions", help="folder, file or hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="compare on this many questions only, drawn with seed 0")
    parser.add_argument("--completions", type=Path, help="a samples file; the models' own greedy ones if not given")
    parser.add_argument("--batch_size", type=int, default=8, help="questions in a forward pass of twice as many rows")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if not (args.models or args.stats or args.layer_sets):
        parser.error("nothing to do: give --models, --stats or --layer_sets")
    args.output.mkdir(parents=True, exist_ok=True)

    by_token = {name: read_layer_stats(path) for name, path in args.stats}
    pooled, sets = {}, {}
    rows = list(load_questions(args.questions, args.split, limit=args.limit, seed=0)) if args.models else []
    for name, path in args.models:
        drift = analyze(name, path, rows, args)
        by_token[name], pooled[name] = layer_stats(drift.by_token), layer_stats(drift.pooled)
        sets[name] = {"by_token": layer_set_stats(drift.by_token), "pooled": layer_set_stats(drift.pooled)}
        (args.output / name).mkdir(exist_ok=True)
        about = {"model": path, "questions": len(drift.keys), "skipped": drift.skipped}
        for file, stats in (("layer_stats", by_token[name]), ("layer_stats_pooled", pooled[name])):
            (args.output / name / f"{file}.json").write_text(json.dumps({**stats, **about}, indent=2) + "\n")
        means = ", ".join(f"{layer_set} {stats['mean']:.4f}" for layer_set, stats in sets[name]["by_token"].items())
        print(f"{name}: {len(drift.keys)} questions, {len(drift.skipped)} skipped; token by token: {means}")
    if by_token:
        plot_drift(by_token, pooled).savefig(args.output / "drift.png")
    if sets:
        (args.output / "layer_sets.json").write_text(json.dumps(sets, indent=2) + "\n")
    if args.layer_sets:
        plot_layer_sets({name: read_pair(path) for name, path in args.layer_sets}).savefig(
            args.output / "layer_sets.png"
        )


if __name__ == "__main__":
    main()
