"""A run as one self-contained HTML file: curves, before and after, drift, samples to listen to, settings.

    python recipes/report.py runs/demo
    python recipes/report.py runs/mine --questions my/questions --split train --output mine.html

Before and after are those of the demo's summary.json, or evaluations in RUN/evaluation/before and RUN/evaluation/after:

    python recipes/evaluate.py --model BASE --tasks demo --output_path runs/mine/evaluation/before
    python recipes/evaluate.py --model runs/mine --tasks demo --output_path runs/mine/evaluation/after

Clips of the samples are looked up by key in --questions; questions that are not found there are shown without.
"""

import argparse
from pathlib import Path

from tars_trl import load_questions
from tars_trl.report.html import write_report


def main() -> None:
    """Write the report and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of a training run")
    parser.add_argument("--output", type=Path, help="file to write (default: RUN/report.html)")
    parser.add_argument(
        "--questions", default="recipes/demo/questions", help="the run's data set: folder, file, hub id"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--samples", type=int, default=4, help="questions of the last step to show")
    args = parser.parse_args()
    rows = load_questions(args.questions, args.split)
    path = write_report(args.run, args.output, rows, args.samples)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
