"""A run as one self-contained HTML file: curves, before and after, drift, samples to listen to, settings.

    tars-trl report runs/mine
    tars-trl report runs/mine --dataset my/questions --split train --output_file mine.html

Before and after are evaluations in RUN/evaluation/before and RUN/evaluation/after:

    tars-trl evaluate --model BASE --tasks my/questions --log_samples true --output_dir runs/mine/evaluation/before
    tars-trl evaluate --model runs/mine --tasks my/questions --log_samples true --output_dir runs/mine/evaluation/after

Clips of the samples are looked up by key in the run's questions; those that are not found there are shown without.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .. import load_questions
from ..record import read_run
from ..report.html import write_report
from ..report.plots import check_matplotlib
from ..settings import Settings, parse, run, setting


@dataclass
class ReportSettings(Settings):
    """Which run, and where its questions are."""

    run: str | None = setting(None, "Output folder of a training run.", positional=True, required=True)
    output_file: str | None = setting(None, "File to write. None: report.html in the run's folder.")
    dataset: str | None = setting(
        None, "The run's questions, for their clips: hub id, folder or file. None: those that the run names."
    )
    split: str | None = setting(None, "Split of the questions. None: the run's.")
    samples: int = setting(2, "Questions of each kind to show: mended, still wrong, of the last logged step.", least=0)


def questions_of(settings: ReportSettings) -> Iterable[Mapping[str, Any]]:
    """The run's questions; none, which is said, if the run's own are not here any more."""
    facts = read_run(str(settings.run))
    dataset, split = settings.dataset or facts.get("dataset"), settings.split or facts.get("split") or "train"
    if dataset is None:
        print(f"No clips: {settings.run} does not say what it was trained on. --dataset names it.")
        return ()
    try:
        training = load_questions(dataset, split)
    except OSError as error:  # also without network
        if settings.dataset:
            raise
        print(f"No clips: the run's questions {dataset} cannot be read, {error} --dataset names another place.")
        return ()
    with suppress(ValueError, OSError):  # held-out ones, if they lie beside
        return chain(training, load_questions(dataset, "test"))
    return training


def main(args: list[str] | None = None) -> None:
    """Write the report and say where it is."""
    (settings,) = parse(ReportSettings, args=args, description=__doc__)
    check_matplotlib()
    path = write_report(settings.run, settings.output_file, questions_of(settings), settings.samples)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
