"""A run as one self-contained HTML file: curves, before and after, drift, samples to listen to, settings.

    python recipes/report.py runs/demo
    python recipes/report.py runs/mine --dataset my/questions --split train --output_file mine.html

Before and after are evaluations in RUN/evaluation/before and RUN/evaluation/after; the demo leaves them there:

    python recipes/evaluate.py --model BASE --tasks demo --output_dir runs/mine/evaluation/before
    python recipes/evaluate.py --model runs/mine --tasks demo --output_dir runs/mine/evaluation/after

Clips of the samples are looked up by key in --dataset; questions that are not found there are shown without.
"""

from dataclasses import dataclass

from tars_trl import load_questions
from tars_trl.report.html import write_report
from tars_trl.report.plots import check_matplotlib
from tars_trl.settings import Settings, parse, run, setting


@dataclass
class ReportSettings(Settings):
    """Which run, and where its questions are."""

    run: str | None = setting(None, "Output folder of a training run.", positional=True, required=True)
    output_file: str | None = setting(None, "File to write. None: report.html in the run's folder.")
    dataset: str = setting("recipes/demo/questions", "The run's questions: hub id, folder or file.")
    split: str = setting("train", "Split of the questions.")
    samples: int = setting(4, "Questions of the last logged step to show.", least=0)


def main(args: list[str] | None = None) -> None:
    """Write the report and say where it is."""
    (settings,) = parse(ReportSettings, args=args, description=__doc__)
    check_matplotlib()
    rows = load_questions(settings.dataset, settings.split)
    path = write_report(settings.run, settings.output_file, rows, settings.samples)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
