"""Publishing a training run: what a recipe adds so that its push is protected and its folder has a card."""

from pathlib import Path
from typing import Any

from ..grpo.callbacks import Publisher
from ..record import read_run
from .cards import write_card
from .hub import prepare_repository


class PublishCallback(Publisher):
    """`Publisher` with this package's card and the hub's protection: `callbacks=[PublishCallback()]`.

    Nothing is pushed but with `push_to_hub`, and then to a private repository that holds nothing else, unless
    `hub_private_repo=False`. A run that resumes goes on in the repository it began.
    """

    def prepare(self, trainer: Any, token: str | None = None, private: bool | None = None) -> bool:
        """Create the repository, or refuse to lose or publish what it holds."""
        args = trainer.args
        private = args.hub_private_repo is not False if private is None else private
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        if trainer.is_world_process_zero():
            run_id = read_run(args.output_dir).get("run_id") if args.resume_from_checkpoint else None
            prepare_repository(name, hub_revision=args.hub_revision, private=private, run_id=run_id, token=token)
        return private

    def write_card(self, trainer: Any) -> None:
        """README.md in the output folder, from the `run.json` there."""
        folder = Path(trainer.args.output_dir)
        facts = read_run(folder)
        name = trainer.hub_model_id or folder.resolve().name
        write_card(folder, facts, trainer.architecture, name, adapter=bool(facts["adapter"]))
