"""Every table of a study, from the answers that compare has left. Nothing is run, nothing is read beside it.

    tars-trl study runs/study/validation/results.json --choose true
    tars-trl study runs/study/test/results.json --pairs "tars: grpo" "grpo_distill: tars" --figure curves.png

With `--choose` the best variant of each arm is printed, as entries of `variants` for the test; else spoken accuracy
by step, speed and what carries over, what the advantages were made of, and the pairs, each with its interval.
"""

from dataclasses import dataclass
from pathlib import Path

from ..comparison.study import Study, choose, curve_table, outcome_table, pair_table, plot_curves, share_table
from ..errors import SettingError
from ..report.plots import check_matplotlib
from ..settings import Settings, parse, run, setting


@dataclass
class StudySettings(Settings):
    """Which answers, and what is made of them."""

    results: str | None = setting(None, "results.json of a comparison.", required=True, positional=True)
    pairs: list[str] = setting([], "Arms to set against each other, as `FIRST: SECOND`.")
    domain: str | None = setting(None, "Set the pairs against each other on this domain's questions alone, too.")
    accuracy: float = setting(0.7, "Spoken accuracy to which steps and seconds are counted.", above=0, most=1)
    figure: str | None = setting(None, "Also draw spoken accuracy by step into this file, .png or .svg.")
    choose: bool = setting(False, "Print the best variant of each arm instead.")


def main(args: list[str] | None = None) -> None:
    """Read and print."""
    (settings,) = parse(StudySettings, args=args, description=__doc__)
    path = Path(str(settings.results))
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file. Give the results.json that compare has left.")
    study = Study.read(path)
    if settings.figure:
        if Path(settings.figure).suffix not in (".png", ".svg"):
            raise SettingError(f"figure: {settings.figure!r} is neither .png nor .svg. Write one of them.")
        check_matplotlib()
        Path(settings.figure).parent.mkdir(parents=True, exist_ok=True)
        plot_curves(study).savefig(settings.figure)
    if settings.choose:
        print("\n".join(f'  - "{arm}: {best.variant}"' for arm, best in choose(study).items()))
        return
    domains = sorted({domain for row in study.answers for domain in row.domains})
    if settings.domain is not None and settings.domain not in domains:
        raise SettingError(f"domain: {settings.domain!r} is none of theirs. They are {', '.join(domains) or 'none'}.")
    pairs = []
    for pair in settings.pairs:
        first, _, second = (part.strip() for part in pair.partition(":"))
        if not {first, second} <= set(study.arms):
            raise SettingError(f"pairs: {pair!r} is no pair of arms. Write FIRST: SECOND, of {', '.join(study.arms)}.")
        pairs.append((first, second))
    print(f"## Spoken accuracy by step, %\n\n{curve_table(study)}")
    print(f"## Speed, and what carries over\n\n{outcome_table(study, settings.accuracy)}")
    print(f"## What spoken tokens learned from, % of the variance of their advantages\n\n{share_table(study)}")
    if pairs:
        print(f"## Arm against arm, points\n\n{pair_table(study, pairs, settings.domain)}")


if __name__ == "__main__":
    run(main)
