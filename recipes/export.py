r"""From a checkpoint to a folder that others can open, checked, carded and, if asked, pushed.

    python recipes/export.py runs/demo --output_dir runs/demo-merged --format merged
    python recipes/export.py runs/tars-qwen2.5-omni-7b --output_dir runs/tars-omni --format omni \
        --results runs/results/*tars-qwen2.5-omni-7b/results_*.json --push_to user/TARS-Omni

Formats: adapter; merged (the whole model that was trained, such as a thinker); omni (the whole checkpoint with the
thinker put back, or a new one around a thinker alone).
Every export is loaded again in a fresh process, whose greedy answers and logits to a spoken and a written question must
be the trained model's; if not, nothing is pushed. A push is private unless `--public`, and overwrites nothing unless
`--overwrite`. The token is the one of `hf auth login` or HF_TOKEN. Memory: the model in float32.
"""

from dataclasses import dataclass

from tars_trl.settings import parse, run, setting
from tars_trl.share.export import ExportSettings, export


@dataclass
class DemoExport(ExportSettings):
    """The demo's questions are asked, unless others are given."""

    dataset: str | None = setting(
        "recipes/demo/questions", "Questions whose first one is asked in both forms: hub id, folder or file."
    )


def main(args: list[str] | None = None) -> None:
    """Export as the settings say."""
    (settings,) = parse(DemoExport, args=args, description=__doc__)
    export(settings)


if __name__ == "__main__":
    run(main)
