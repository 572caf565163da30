r"""Where speech and text part inside a model: layer-wise similarity under the spoken and the written prompt.

    tars-trl analyze-drift --models before=BASE after=runs/mine --dataset my/questions --output_dir runs/mine/drift

For each model its own written completions (greedy, or those of --completions) are fed behind both prompts and compared
layer by layer, token by token and pooled (paper, figure 2). Left in the output folder: `MODEL/layer_stats.json` (keys
of the published files), `MODEL/layer_stats_pooled.json` and `MODEL/layer_stats_baseline.json` (the pooled similarity to
another question's completion), `change.json` (of two models, on the same questions), `layer_sets.json`, `drift.png`.
Files of other models join the figure with `--stats paper=layer_stats.json`. Figure 3 is drawn from evaluations of runs
that aligned different layers, results of `evaluate` (files or folders):

    tars-trl analyze-drift --output_dir runs/layers \
        --layer_sets shallow=runs/results/runs__shallow all=runs/results/runs__all
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.hub import check_place
from ..errors import SettingError
from ..evaluation.drift import Drift, layer_set_stats, layer_stats, measure_drift, pooled_change, read_layer_stats
from ..evaluation.results import read_pair
from ..files import parse_json
from ..report.plots import check_matplotlib, plot_drift, plot_layer_sets
from ..sampling.complete import complete, decoding
from ..sampling.shared import SamplingSettings, chosen_questions, model_loader, start_processes
from ..settings import parse, run, setting


@dataclass
class DriftSettings(SamplingSettings):
    """What is compared, and where the figures go."""

    models: list[str] = setting([], "NAME=PATH of each model to measure: hub id or folder, also an adapter's.")
    stats: list[str] = setting([], "NAME=PATH of layer_stats.json files to draw beside them.")
    layer_sets: list[str] = setting([], "NAME=PATH of evaluations to draw figure 3 from, one for each set of layers.")
    output_dir: str | None = setting(None, "Folder of figures and statistics.", required=True)
    dataset: str | None = setting(None, "Questions: hub id, folder or file.")
    split: str = setting("test", "Split of the questions.")
    completions: str | None = setting(
        None, "Written completions to compare on: a samples file of `evaluate`. None: each model's own."
    )
    model: str | None = field(default=None, init=False)  # `models` names them, and their adapters
    adapter: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.models or self.stats or self.layer_sets):
            raise SettingError("models, stats and layer_sets are empty: nothing to do. Give one of them.")
        for name in ("models", "stats", "layer_sets"):
            self.named(name)
        if self.models and not self.dataset:
            raise SettingError("models are given without a dataset: there is nothing to ask them. Give --dataset.")

    def named(self, name: str) -> dict[str, str]:
        """Paths by name, of `models`, `stats` or `layer_sets`."""
        pairs = [item.partition("=") for item in getattr(self, name)]
        for item, (key, _, path) in zip(getattr(self, name), pairs, strict=True):
            if not path or key in ("", "..") or Path(key).name != key:  # a folder is made for each model
                raise SettingError(f"{name}={item!r} has no plain name to stand in the figure. Write NAME=PATH.")
        if len({key for key, _, _ in pairs}) < len(pairs):
            raise SettingError(f"{name}={getattr(self, name)} names two things alike. Give each a name of its own.")
        return {key: path for key, _, path in pairs}


def read_completions(path: str) -> dict[str, str]:
    """Written completions by key: a samples file of `evaluate`, or .jsonl lines with `key` and `text`."""
    try:
        lines = [parse_json(line) for line in Path(path).read_bytes().split(b"\n") if line.strip()]
        written = [line for line in lines if line.get("modality", "text") == "text"]
        texts = {line["key"]: line["resps"][0][0] if "resps" in line else line["text"] for line in written}
    except OSError as error:
        raise SettingError(f"completions={path!r} cannot be read, {error}. Correct the path.") from error
    except (ValueError, AttributeError, LookupError, TypeError):  # no JSON, or other lines
        texts = {}
    if not texts or not all(isinstance(text, str) for pair in texts.items() for text in pair):
        raise SettingError(
            f"completions={path!r} holds no written completions, or some without a key or a text. Give a "
            "samples_*_text_*.jsonl of `tars-trl evaluate`, or lines with key and text."
        )
    return texts


def analyze(
    name: str, path: str, rows: list[dict[str, Any]], completions: dict[str, str], settings: DriftSettings
) -> Drift:
    """Load one model, let it complete the questions in writing unless there are completions, compare."""
    own = copy.copy(settings)
    own.model = path
    model, processor = model_loader(own)()
    if not completions:
        written = complete(model, processor, rows, "text", batch_size=4 * settings.batch_size, **decoding(settings))
        completions = {done.key: done.text for done in tqdm(written, f"{name}, completing", len(rows))}
    with tqdm(desc=f"{name}, comparing", total=len(rows)) as bar:
        return measure_drift(model, processor, rows, completions, batch_size=settings.batch_size, on_batch=bar.update)


def main(args: list[str] | None = None) -> None:
    """Measure, write the files, draw."""
    (settings,) = parse(DriftSettings, args=args, description=__doc__)
    check_matplotlib()
    start_processes(settings.use_cpu)
    output = Path(settings.output_dir)
    models = settings.named("models")
    for path in models.values():
        check_place("models", path, settings.model_revision)
    by_token = {name: read_layer_stats(path) for name, path in settings.named("stats").items()}
    layer_sets = {name: read_pair(path) for name, path in settings.named("layer_sets").items()}
    pooled, baseline, sets, change = {}, {}, {}, None
    measured: list[Drift] = []
    completions = read_completions(settings.completions) if settings.completions else {}
    rows = list(chosen_questions(settings)) if models else []
    output.mkdir(parents=True, exist_ok=True)
    for name, path in models.items():
        drift = analyze(name, path, rows, completions, settings)
        measured.append(drift)
        baseline[name] = layer_stats(drift.baseline)
        by_token[name], pooled[name] = layer_stats(drift.by_token), layer_stats(drift.pooled)
        sets[name] = {"by_token": layer_set_stats(drift.by_token), "pooled": layer_set_stats(drift.pooled)}
        (output / name).mkdir(exist_ok=True)
        about = {"model": path, "questions": len(drift.keys), "skipped": drift.skipped}
        files = {"layer_stats": by_token, "layer_stats_pooled": pooled, "layer_stats_baseline": baseline}
        for file, stats in ((file, models[name]) for file, models in files.items()):
            (output / name / f"{file}.json").write_text(json.dumps({**stats, **about}, indent=2) + "\n")
        means = ", ".join(f"{layer_set} {stats['mean']:.4f}" for layer_set, stats in sets[name]["by_token"].items())
        print(f"{name}: {len(drift.keys)} questions, {len(drift.skipped)} skipped; token by token: {means}")
    if len(measured) == 2:
        change = layer_stats(pooled_change(*measured))
        (output / "change.json").write_text(json.dumps(change | {"from": [*models]}, indent=2) + "\n")
    if by_token:
        plot_drift(by_token, pooled, baseline, change).savefig(output / "drift.png")
    if sets:
        (output / "layer_sets.json").write_text(json.dumps(sets, indent=2) + "\n")
    if layer_sets:
        plot_layer_sets(layer_sets).savefig(output / "layer_sets.png")


if __name__ == "__main__":
    run(main)
