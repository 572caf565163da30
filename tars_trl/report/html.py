"""A run as one HTML file that anyone can open and send on: figures, tables, clips and styles are all inside it.

What is gathered here is laid out by `report.html.jinja`, which escapes all text (that of completions above all).
"""

import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os.path import getmtime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pandas import DataFrame

from ..config import TARSGRPOConfig, telling_settings
from ..data.audio import TARGET_RATE, load_audio
from ..errors import NotLoggedError
from ..evaluation.drift import read_layer_stats
from ..evaluation.metrics import with_interval
from ..evaluation.results import read_pair, read_results
from ..models.loading import identity
from ..record import read_run
from ..settings import defaults_of
from . import plots
from .frames import LoggedRun, completions_frame, domain_frame, load_run, reward_columns, samples_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

ENCODINGS = {b"OggS": "audio/ogg", b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"ID3\x03": "audio/mpeg"}
MOST_BYTES = 200_000
"""Larger clips are encoded again, as Ogg at 16 kHz (about 8 kB a second)."""


def write_report(
    run: str | Path,
    output_file: str | Path | None = None,
    questions: Iterable[Mapping[str, Any]] = (),
    samples: int = 2,
) -> Path:
    """Write the report of a run, of whatever the run has left.

    Args:
        run: output folder of a training run. Beside its log are used, where they exist: `run.json` (settings, what was
            trainable, command), `evaluation/before` and `evaluation/after` (`--output_dir` of `tars-trl evaluate`),
            `completions/`, and the `layer_stats.json` files of `tars-trl analyze-drift` in any folder below.
        output_file: file to write; `report.html` in the run's folder if None.
        questions: rows of the run's data sets, for the clips of the samples; audio undecoded.
        samples: questions of each kind to show: held-out ones that training mended, others that are still wrong, and
            of the last logged step those with the widest spread of rewards.

    Returns:
        The path of the file.
    """
    plots.check_matplotlib()
    folder = Path(run)
    logged, facts = load_run(folder), read_run(folder)
    output_file = Path(output_file) if output_file is not None else folder / "report.html"
    table = facts.get("trainable") or []
    chosen, _ = telling_settings(facts.get("settings") or {})
    defaults = defaults_of(TARSGRPOConfig)
    rows = {row["key"]: row for row in questions}
    before_after = _before_after(folder)
    held_out = _held_out(folder / "evaluation", rows, samples if before_after else 0)
    content = {
        "name": logged.name,
        "facts": _facts(facts),
        "before_after": before_after,
        "curves": _curves(logged),
        "drift": _drift(folder),
        "mended": held_out["mended"],
        "wrong": held_out["wrong"],
        "questions": _questions(folder, rows, samples),
        "settings": [[name, value] for name, value in chosen.items() if value != defaults.get(name)],
        "trainable": [
            [row["component"], f"{row['parameters']:,}", f"{row['trainable']:,}", row["dtype"]] for row in table
        ],
    }
    output_file.write_text(render("page", content), encoding="utf-8")
    return output_file


# ---- HTML ----------------------------------------------------------------------------------------------------------


def _visible(value: Any) -> Any:
    """Control characters (a small model says anything) made visible; what the template itself made is left alone."""
    if isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in str(value))


TEMPLATES = Environment(
    loader=PackageLoader("tars_trl.report", "."),
    autoescape=True,
    finalize=_visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(macro: str, content: Mapping[str, Any]) -> str:
    """What a macro of the template (`page`, `question`) makes of its content; everything in it is escaped."""
    return str(getattr(TEMPLATES.get_template("report.html.jinja").module, macro)(content))


def figure_source(figure: "Figure") -> str:
    """A figure as the `src` of an image, its data inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def clip_source(audio: Any) -> str:
    """A clip as the `src` of a player, from an undecoded `audio` value of a row (or anything `load_audio` reads)."""
    encoded = audio.get("bytes") if isinstance(audio, Mapping) else None
    kind = ENCODINGS.get(encoded[:4]) if encoded else None
    if not encoded or kind is None or len(encoded) > MOST_BYTES:
        buffer = io.BytesIO()
        soundfile.write(buffer, load_audio(audio), TARGET_RATE, format="OGG", subtype="VORBIS")
        encoded, kind = buffer.getvalue(), "audio/ogg"
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def twins_html(completions: DataFrame, audio: Any = None) -> str:
    """One question of one step: its prompt and clip, then the best completion of each twin, side by side, with rewards.

    Args:
        completions: rows of `frames.completions_frame` with one key and one step.
        audio: the question's clip, undecoded; None for no player.
    """
    return render("question", _twins(completions, audio))


def answers_html(sample: Mapping[str, Any], audio: Any = None) -> str:
    """One question of an evaluation (a row of `frames.samples_frame`): clip, and both answers side by side.

    An open question has no options.
    """
    return render("question", _answers(sample, audio))


def _answers(sample: Mapping[str, Any], audio: Any) -> dict[str, Any]:
    options = sample["options"] if isinstance(sample["options"], Sequence) else ()  # None or NaN: an open question
    prompt = "\n".join([str(sample["question"]), *(f"{chr(65 + n)}. {option}" for n, option in enumerate(options))])
    twins = [
        _twin(name, "right" if sample[f"{name}_right"] else "wrong", sample[f"{name}_completion"])
        for name in plots.BOTH
    ]
    return _question(sample["key"], f"right answer {sample['answer']}", prompt, audio, twins)


def _twins(completions: DataFrame, audio: Any) -> dict[str, Any]:
    names, twins = (*reward_columns(completions), "advantage"), []
    for modality, rows in completions.groupby("modality"):
        ranked = rows.sort_values("advantage", ascending=False, kind="stable").to_dict("records")
        sampled = [
            _twin(
                modality,
                f"best of {len(rows)}" if number == 0 else f"{number + 1} of {len(rows)}",
                row["completion"],
                [[name, f"{row[name]:.3f}"] for name in names if row[name] == row[name]],  # no NaN
            )
            for number, row in enumerate(ranked)
        ]
        twins.append(sampled[0] | {"others": sampled[1:]})
    first = completions.sort_values("modality", ascending=False, kind="stable").iloc[0]  # a written one, if there is
    return _question(first["key"], f"step {first['step']}", first["prompt"], audio, twins)


def _question(key: str, note: str, prompt: str, audio: Any, twins: list[dict[str, Any]]) -> dict[str, Any]:
    clip = clip_source(audio) if audio is not None else None
    return {"key": key, "note": note, "prompt": prompt, "clip": clip, "before": None, "twins": twins}


def _twin(modality: str, remark: str, completion: str, rewards: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    color = plots.COLORS.get(modality, plots.COLORS["gap"])
    twin = {"modality": modality, "remark": remark, "completion": completion, "rewards": rewards, "color": color}
    return twin | {"others": []}


# ---- Sections; each is empty where the run has nothing for it -------------------------------------------------------


def _facts(facts: Mapping[str, Any]) -> list[list[str]]:
    """What a reader has to know of a run, each on a line of its own: model, data, date, hardware, versions, command."""
    versions = facts.get("package_versions") or {}
    device = facts.get("processor") if facts.get("device_name") == "cpu" else facts.get("device_name")
    lines = {
        "Model": _last_name(facts.get("base_model")) + (", LoRA" if facts.get("adapter") else ""),
        "Data": ", ".join(filter(None, [_last_name(facts.get("dataset")), f"{facts.get('questions')} questions"])),
        "Date": facts.get("date"),
        "Hardware": f"{facts.get('processes')} x {device}",
        "Time": f"{facts.get('steps')} steps in {facts['seconds']:.0f} s" if facts.get("seconds") else None,
        "Versions": ", ".join(f"{name} {versions[name]}" for name in versions if versions[name] != "not installed"),
        "Commit": facts.get("git_hash"),
        "Command": facts.get("command"),
    }
    return [[name, str(value)] for name, value in lines.items() if value and facts]


def _last_name(place: str | None) -> str:
    """A hub id or a relative path as it is; of a folder elsewhere its name."""
    return Path(place).name if place and place.startswith(("/", "~")) else place or ""


def _held_out(evaluation: Path, rows: Mapping[str, Mapping[str, Any]], samples: int) -> dict[str, list[dict[str, Any]]]:
    """Held-out questions to listen to: heard wrongly before and rightly after, and heard wrongly after."""
    kinds: dict[str, list[dict[str, Any]]] = {"mended": [], "wrong": []}
    try:
        before, after = (samples_frame(evaluation / name).set_index("key") for name in ("before", "after"))
    except (OSError, ValueError) as error:  # no evaluations, without samples, or damaged
        if evaluation.is_dir():
            logger.warning("No held-out questions: %s", error)
        return kinds
    mended = after["speech_right"] & ~before["speech_right"].reindex(after.index, fill_value=True)
    for kind, chosen in (("mended", after[mended]), ("wrong", after[~after["speech_right"]])):
        for sample in chosen.reset_index().head(samples).to_dict("records"):
            audio = rows.get(sample["key"], {}).get("audio")
            shown = _answers(sample, audio)
            if kind == "mended":
                shown["before"] = before.loc[sample["key"], "speech_completion"]
            kinds[kind].append(shown)
    return kinds


def _before_after(folder: Path) -> dict[str, Any] | None:
    evaluation = folder / "evaluation"
    if not all((evaluation / name).is_dir() for name in ("before", "after")):
        return None
    measured = (read_results(evaluation / "after").get("hashes") or {}).get("adapter")
    if measured and (folder / "adapter_config.json").is_file() and measured != identity(str(folder)):
        logger.warning("%s is of other weights than the run's and is left out: evaluate the run.", evaluation / "after")
        return None
    results = {name: read_pair(evaluation / name) for name in ("before", "after")}
    rates = {"recovery": "recovery, %"}
    if any(result.get("mrr") is not None for result in results.values()):
        rates["mrr"] = "MRR, %"
    rows = []
    for name, result in results.items():
        kinds = {"speech": "speech_accuracy", "text": "text_accuracy", "gap": "gap"}
        cells = [with_interval(result[figure], result[f"{kind}_interval"]) for kind, figure in kinds.items()]
        cells += ["" if result.get(rate) is None else f"{result[rate]:.1f}" for rate in rates]
        rows.append([name, *cells])
    try:
        domains = [domain_frame(samples_frame(evaluation / name)) for name in results]
    except (OSError, ValueError):  # evaluated without log_samples
        domains = []
    several = len(domains) == 2 and len(domains[0]) > 1
    return {
        "figure": figure_source(plots.plot_before_after(results["before"], results["after"])),
        "domains": figure_source(plots.plot_domains(*domains)) if several else None,
        "header": ["", "speech, %", "text, %", "gap, points", *rates.values()],
        "rows": rows,
    }


def _curves(run: LoggedRun) -> list[tuple[str, str]]:
    """The figures of which the run logged something, with what they show; of a supervised run the loss."""
    sources: list[tuple[str, str]] = []
    for plot, caption in (
        (plots.plot_gap, "Accuracy and gap over training"),
        (plots.plot_rewards, "Reward terms by modality"),
        (plots.plot_shares, "What each reward contributes to the advantages, and the distance to the written teacher"),
        (plots.plot_health, "Signal, references, truncation and lengths"),
        (plots.plot_loss, "Loss over training"),
    ):
        if plot is not plots.plot_loss or not sources:
            with suppress(NotLoggedError):
                sources.append((figure_source(plot(run)), caption))
    return sources


def _drift(folder: Path) -> str | None:
    stats, pooled, baseline = (
        # In the order they were measured, which is usually before, after.
        {file.parent.name: read_layer_stats(file) for file in sorted(sorted(folder.rglob(name)), key=getmtime)}
        for name in ("layer_stats.json", "layer_stats_pooled.json", "layer_stats_baseline.json")
    )
    change = [read_layer_stats(file) for file in folder.rglob("change.json")][:1]
    return figure_source(plots.plot_drift(stats, pooled, baseline, *change)) if stats else None


def _questions(folder: Path, rows: Mapping[str, Mapping[str, Any]], samples: int) -> list[dict[str, Any]]:
    if not any((folder / "completions").glob("completions_*.parquet")):
        return []
    completions = completions_frame(folder)
    last = completions[completions["step"] == completions["step"].max()]
    spread = last.groupby("key")["advantage"].agg(lambda values: values.max() - values.min())
    keys = list(spread.sort_values(ascending=False).index[:samples])
    return [_twins(last[last["key"] == key], rows.get(key, {}).get("audio")) for key in keys]
