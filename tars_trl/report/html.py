"""A run as one HTML file that anyone can open and send on: figures, tables, clips and styles are all inside it.

All text that comes from a run (completions above all) is escaped.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NotLoggedError
from .frames import Run, completions_frame, load_run, read_json, read_pair, reward_columns, run_settings
from .plots import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

ENCODINGS = {b"OggS": "audio/ogg", b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"ID3\x03": "audio/mpeg"}
MOST_BYTES = 200_000
"""Larger clips are encoded again, as Ogg at 16 kHz (about 8 kB a second)."""
HIDDEN_SETTINGS = ("logging_dir", "output_dir")  # name the machine, not the run
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
th { color: #555; font-weight: 600; } td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; } .quiet { color: #666; }
.twins { border: 1px solid #ddd; border-radius: 6px; padding: .7rem 1rem; margin: 1rem 0; }
"""


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    questions: Iterable[Mapping[str, Any]] = (),
    shown: int = 4,
) -> Path:
    """Write the report of a run, of whatever the run has left.

    Args:
        run: output folder of a training run. Beside its log are used, where they exist: `summary.json` (`before`,
            `after` and `command`, as the demo writes them) or else `evaluation/before` and `evaluation/after`
            (`--output_path` of `recipes/evaluate.py`), `trainable.json`, `training_args.bin`, `completions/`, and the
            `layer_stats.json` files of `recipes/analyze_drift.py` in any folder below.
        output: file to write; `report.html` in the run's folder if None.
        questions: rows of the run's data set, for the clips of the samples; audio undecoded.
        shown: questions of the last logged step to show, those with the widest spread of rewards first.

    Returns:
        The path of the file.
    """
    folder = Path(run)
    loaded = load_run(folder)
    output = Path(output) if output is not None else folder / "report.html"
    sections = [_before_after(folder), _curves(loaded), _drift(folder), _samples(folder, questions, shown)]
    sections += [_settings(folder), _trainable(folder)]
    name = html.escape(loaded.name)
    known = (read_json(folder / "run.json") or {}) | (read_json(folder / "summary.json") or {})
    made = f"A tars-trl run: <code>{_text(known['command'])}</code>" if known.get("command") else "A tars-trl run."
    body = f"<h1>{name}</h1>\n<p class=quiet>{made}</p>\n" + "\n".join(filter(None, sections))
    page = (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{name}</title>\n<style>{STYLE}</style></head>"
    )
    output.write_text(f"{page}\n<body>\n{body}\n</body></html>\n", encoding="utf-8")
    return output


def audio_tag(audio: Any) -> str:
    """A player with the clip inside, from an undecoded `audio` value of a row (or anything `load_audio` reads)."""
    encoded = audio.get("bytes") if isinstance(audio, Mapping) else None
    kind = ENCODINGS.get(encoded[:4]) if encoded else None
    if not encoded or kind is None or len(encoded) > MOST_BYTES:
        import soundfile

        from ..data.audio import TARGET_RATE, load_audio

        buffer = io.BytesIO()
        soundfile.write(buffer, load_audio(audio), TARGET_RATE, format="OGG", subtype="VORBIS")
        encoded, kind = buffer.getvalue(), "audio/ogg"
    data = base64.b64encode(encoded).decode()
    return f'<audio controls style="display: block; margin: .4rem 0" src="data:{kind};base64,{data}"></audio>'


def twins_html(completions: "DataFrame", audio: Any = None) -> str:
    """One question of one step: its prompt and clip, then the best completion of each twin, side by side, with rewards.

    Args:
        completions: rows of `runs.completions_frame` with one key and one step.
        audio: the question's clip, undecoded; None for no player.
    """
    rewards, twins = reward_columns(completions), {}
    for modality, rows in completions.groupby("modality"):
        best = rows.loc[rows["advantage"].idxmax()]
        values = [[name, f"{best[name]:.3f}"] for name in (*rewards, "advantage") if best[name] == best[name]]  # no NaN
        twins[modality] = f"best of {len(rows)}", best["completion"], _table(values)
    written = completions[completions["modality"] == "text"]
    prompt = (written if len(written) else completions)["prompt"].iloc[0]
    first = completions.iloc[0]
    return _side_by_side(first["key"], f"step {first['step']}", prompt, audio, twins)


def answers_html(sample: Mapping[str, Any], audio: Any = None) -> str:
    """One question of an evaluation (a row of `runs.samples_frame`): clip, and both answers side by side.

    An open question has no options.
    """
    right = {True: "right", False: "wrong"}
    twins = {m: (right[bool(sample[f"{m}_right"])], sample[f"{m}_completion"], "") for m in ("speech", "text")}
    given = sample["options"] if isinstance(sample["options"], Sequence) else ()  # None or NaN: an open question
    options = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", given, strict=False)
    prompt = "\n".join([str(sample["question"]), *(f"{letter}. {option}" for letter, option in options)])
    return _side_by_side(sample["key"], f"right answer {sample['answer']}", prompt, audio, twins)


def _side_by_side(key: Any, note: Any, prompt: str, audio: Any, twins: Mapping[str, tuple[str, str, str]]) -> str:
    """A question and what its twins said. Styles are inline: a notebook shows this too."""
    said = "white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace"
    parts = [f"<p><b>{_text(key)}</b> <span style='color: #777'>{_text(note)}</span></p>"]
    parts += [f"<div style='{said}'>{_text(prompt)}</div>", audio_tag(audio) if audio is not None else ""]
    parts.append("<div style='display: flex; gap: 1rem'>")
    for modality in (modality for modality in ("speech", "text") if modality in twins):
        remark, completion, table = twins[modality]
        parts.append(
            f"<div style='flex: 1; margin-top: .5rem; padding-left: .8rem; border-left: 4px solid {COLORS[modality]}'>"
            f"<b>{modality}</b> <span style='color: #777'>{_text(remark)}</span>"
            f"<div style='{said}'>{_text(completion)}</div>{table}</div>"
        )
    return f"<div class=twins>{''.join(parts)}</div></div>"


def figure_tag(figure: "Figure", alt: str) -> str:
    """A figure as an image with its data inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


# Sections; each is "" where the run has nothing for it


def _before_after(folder: Path) -> str:
    from .plots import plot_before_after

    summary = read_json(folder / "summary.json") or {}
    before, after = summary.get("before"), summary.get("after")
    if not before or not after:
        places = [folder / "evaluation" / name for name in ("before", "after")]
        if not all(place.is_dir() for place in places):
            return ""
        before, after = map(read_pair, places)
    rows = []
    for name, result in (("before", before), ("after", after)):
        cells = [name]
        for kind in ("speech_accuracy", "text_accuracy", "gap"):
            low, high = result[f"{kind.removesuffix('_accuracy')}_interval"]
            cells.append(f"{100 * result[kind]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        rows.append([*cells, "" if result["mrr"] is None else f"{result['mrr']:.1f}"])
    header = ["", "speech, %", "text, %", "gap, points", "MRR, %"]
    took = f"<p class=quiet>{summary['seconds']:.0f} s, 95 % intervals</p>" if "seconds" in summary else ""
    return (
        "<h2>Before and after</h2>"
        + figure_tag(plot_before_after(before, after), "Accuracies before and after")
        + (_table(rows, header) + took)
    )


def _curves(run: Run) -> str:
    """The figures of which the run logged something; of a supervised run the loss."""
    from .plots import plot_gap, plot_health, plot_loss, plot_rewards

    twins = [
        (plot_gap, "Accuracy and gap over training"),
        (plot_rewards, "Reward terms by modality"),
        (plot_health, "Signal, references, truncation and lengths"),
    ]
    figures = _drawn(run, twins) or _drawn(run, [(plot_loss, "Loss over training")])
    return "<h2>Training</h2>" + "".join(figures) if figures else ""


def _drawn(run: Run, figures: Iterable[tuple[Callable[[Run], "Figure"], str]]) -> list[str]:
    tags = []
    for draw, alt in figures:
        try:
            tags.append(f"<p>{figure_tag(draw(run), alt)}</p>")
        except NotLoggedError:
            continue
    return tags


def _drift(folder: Path) -> str:
    from ..evaluation.drift import read_layer_stats
    from .plots import plot_drift

    stats, pooled = (
        {file.parent.name: read_layer_stats(file) for file in _oldest_first(folder.rglob(name))}
        for name in ("layer_stats.json", "layer_stats_pooled.json")
    )
    if not stats:
        return ""
    return "<h2>Drift between speech and text</h2>" + figure_tag(plot_drift(stats, pooled), "Similarity by layer")


def _oldest_first(files: Iterable[Path]) -> list[Path]:
    """In the order they were measured, which is usually before, after."""
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file))


def _samples(folder: Path, questions: Iterable[Mapping[str, Any]], shown: int) -> str:
    if not any((folder / "completions").glob("completions_*.parquet")):
        return ""
    completions = completions_frame(folder)
    last = completions[completions["step"] == completions["step"].max()]
    spread = last.groupby("key")["advantage"].agg(lambda values: values.max() - values.min())
    keys = list(spread.sort_values(ascending=False).index[:shown])
    clips = {row["key"]: row["audio"] for row in questions if row["key"] in keys}
    blocks = [twins_html(last[last["key"] == key], clips.get(key)) for key in keys]
    return "<h2>Questions of the last step</h2>" + "".join(blocks)


def _settings(folder: Path) -> str:
    settings = run_settings(folder)
    if not settings:
        return ""
    from ..config import TARSGRPOConfig

    defaults = {field.name: field.default for field in fields(TARSGRPOConfig) if field.default is not MISSING}
    settings = {name: value for name, value in settings.items() if name not in HIDDEN_SETTINGS}
    ours = set(TARSGRPOConfig.__annotations__)
    chosen = [name for name in settings if name in ours or (name in defaults and settings[name] != defaults[name])]
    rest = [[name, settings[name]] for name in settings if name not in chosen]
    return (
        "<h2>Settings</h2><p class=quiet>The method's own, and others that are not the default.</p>"
        + _table([[name, settings[name]] for name in chosen])
        + f"<details><summary>All {len(settings)}</summary>{_table(rest)}</details>"
    )


def _trainable(folder: Path) -> str:
    table = read_json(folder / "trainable.json")
    if not table:
        return ""
    rows = [[row["component"], f"{row['parameters']:,}", f"{row['trainable']:,}", row["dtype"]] for row in table]
    return "<h2>Parameters</h2>" + _table(rows, ["component", "parameters", "trainable", "type"])


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
    lines = [("th", header)] if header else []
    lines += [("td", row) for row in rows]
    cells = ("".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in line) for tag, line in lines)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def _text(value: Any) -> str:
    """Escaped, and control characters (a small model says anything) made visible."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "�" for c in str(value)))
