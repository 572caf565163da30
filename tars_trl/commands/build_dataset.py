"""Written multiple-choice questions to spoken ones, in the schema that the trainer reads.

    tars-trl build-dataset --config build.yaml
    tars-trl build-dataset --config build.yaml --stage text
    tars-trl build-dataset --config build.yaml --stage speech --processes 16
    tars-trl build-dataset --config build.yaml --stage card --push_to USER/NAME

Stages: `text` splits, puts into words and drops what cannot be spoken or leaks; `speech` speaks, checks and listens;
`card` writes the data set card. Each prints what it kept, dropped and why. A build that was interrupted, by whatever,
is continued by the same command. Nothing is uploaded without `--push_to`, and then privately.
"""

from pathlib import Path

from ..settings import parse, run
from ..share.cards import count_table, write_dataset_card
from ..share.hub import push
from ..speaking.build import build
from ..speaking.settings import BuildSettings


def main(args: list[str] | None = None) -> None:
    """Build, print what was kept, write the card, and push if asked to."""
    (settings,) = parse(BuildSettings, args=args, description=__doc__)
    facts = build(settings)
    print(count_table(facts["counts"]))
    print(f"\n{settings.output_dir}: rows in data/, what was dropped and why in .work/")
    if settings.stage in ("all", "card"):
        folder = Path(settings.output_dir).expanduser()
        write_dataset_card(folder, facts)
        if settings.push_to is not None:
            options = {"private": not settings.public, "overwrite": settings.overwrite}
            address = push(folder, settings.push_to, repo_type="dataset", **options)
            print(f"Uploaded, {'public' if settings.public else 'private'}: {address}")


if __name__ == "__main__":
    run(main)
