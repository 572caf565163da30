r"""From a checkpoint to a folder that others can open, checked, carded and, if asked, pushed.

    tars-trl export runs/mine --output_dir runs/mine-merged --format merged
    tars-trl export runs/mine --output_dir runs/mine-omni --format omni \
        --results runs/results/runs__mine/results_*.json --push_to user/TARS-Omni

Formats: adapter; merged (the whole model that was trained, such as a thinker); omni (the whole checkpoint with the
thinker put back, or a new one around a thinker alone).
Every export is loaded again in a fresh process, whose greedy answers and logits to a spoken and a written question must
be the trained model's; if not, nothing is pushed. A push is private unless `--public`, and overwrites nothing unless
`--overwrite`. The token is the one of `hf auth login` or HF_TOKEN. Memory: the model in float32.
"""

from ..settings import parse, run
from ..share.export import ExportSettings, export


def main(args: list[str] | None = None) -> None:
    """Export as the settings say."""
    (settings,) = parse(ExportSettings, args=args, description=__doc__)
    export(settings)


if __name__ == "__main__":
    run(main)
