"""How a run is kept, whichever of TRL's trainers makes it: resumed exactly, checkpoints sealed, recorded, published."""

from collections.abc import Callable, Mapping
from typing import Any

from ..models import SpeechLLM
from ..models.prompting import base_of
from ..record import format_trainable, trainable_table, write_run
from .callbacks import publisher_of
from .preparing import refuse_misplaced_adapters
from .resuming import checkpoint_to_continue, seal_checkpoint


class KeptRun:
    """Mixin in front of a trainer of TRL."""

    args: Any
    model: Any
    accelerator: Any
    architecture: SpeechLLM
    is_world_process_zero: Callable[[], bool]
    questions_from: Mapping[str, str | None] = {}
    """`dataset` and `split` that the training questions were loaded from, for `run.json`; `commands.train` says it."""

    @property
    def _base(self) -> Any:
        """The model without adapter and wrappers around it."""
        return base_of(self.accelerator.unwrap_model(self.model))

    def _show_trainable(self) -> None:
        """Print what is trained, after a look at where the adapters are (see `refuse_misplaced_adapters`)."""
        refuse_misplaced_adapters(self._base, self.architecture, self.args)
        if self.is_world_process_zero():
            print(format_trainable(trainable_table(self._base, self.architecture.audio_modules)))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's, from a whole checkpoint of this very run (`last`: the newest), or in a folder without a run."""
        checkpoint = checkpoint_to_continue(self, resume_from_checkpoint)
        self.create_model_card()
        parent: Any = super()
        return parent.train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once the new one is whole
        parent: Any = super()
        parent._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        seal_checkpoint(self, limit)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """`run.json`, and the card that a `Publisher` makes of it, in the place of TRL's card.

        Args:
            model_name: title of the card; None for the repository's name.
            dataset_name: what the card says of the data; None for the file or repository that it was read from.
            tags: further ones of the card.
        """
        told = {"model_name": model_name, "dataset": dataset_name, "tags": [tags] if isinstance(tags, str) else tags}
        if self.is_world_process_zero():
            write_run(self, self._base, self.architecture.audio_modules, told)
            publisher = publisher_of(self)
            if publisher is not None:
                publisher.write_card(self)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """The repository to push to, as a `Publisher` allows it."""
        publisher = publisher_of(self)
        parent: Any = super()
        parent.init_hf_repo(token, publisher.prepare(self, token, private) if publisher is not None else private)

    def _send_telemetry(self) -> None:
        """Nothing: what runs where is nobody's business unless the user asks for it."""
