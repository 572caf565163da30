"""What speaks while a run goes on: the progress line, and health warnings; and who publishes it (`Publisher`)."""

import logging
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from ..errors import SettingError

SHOWN = {
    "speech": ("speech/accuracy", "eval_speech/accuracy", "eval_speech/accuracy_greedy"),
    "text": ("text/accuracy", "eval_text/accuracy", "eval_text/accuracy_greedy"),
    "gap": ("gap/accuracy", "eval_gap/accuracy", "eval_gap/accuracy_greedy"),
    "reward": ("reward", "eval_reward"),
    "no_ref": ("alignment/no_reference",),
    "kl": ("distillation/kl",),
}


class TwinProgressCallback(ProgressCallback):
    """transformers' progress bar with the twins' figures as its postfix."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show this step's figures; everything else is in the trackers and in trainer_state.json."""
        if self.training_bar is None or not state.is_world_process_zero or not logs:
            return
        shown = {
            name: f"{value:.2f}"
            for name, keys in SHOWN.items()
            if (value := next((logs[key] for key in keys if logs.get(key) is not None), None)) is not None
        }
        if shown:
            self.training_bar.set_postfix(shown)


def use_twin_progress(trainer: Any) -> None:
    """Put our bar in the place of transformers' own, where that is in use."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(TwinProgressCallback)


logger = logging.getLogger(__name__)

REMEDIES = {
    "no signal": (
        "every group's completions earned the same reward, so all advantages are zero and nothing is learned. Check "
        "the reward functions on a few completions, raise the temperature, or choose questions that are neither always "
        "nor never answered."
    ),
    "all truncated": (
        "every completion was cut off at max_completion_length, so none counts. Raise max_completion_length, or check "
        "that the model ends its turn (end token, chat template)."
    ),
    "no reference": (
        "no group had a correct written completion, so the alignment rewards were never given. Check that the written "
        "form is answered at all and that `reference_reward` names the reward that says correct."
    ),
    "drifting apart": (
        "alignment with the written completions rises while spoken accuracy falls: the model learns to sound alike "
        "instead of being right. Lower representation_weight and behavior_weight, or the learning rate."
    ),
    "leaving the teacher": (
        "spoken completions move away from what the written twin's reader would say (distillation/kl rises) while "
        "spoken accuracy falls. Lower the learning rate; with a live teacher use teacher_model_kind='base'."
    ),
}


class HealthCallback(TrainerCallback):
    """Reads the logged metrics; gives each warning of `REMEDIES` at most once.

    Args:
        steps: logged steps in a row (no signal, truncation, references), or a half window's length (what rises while
            accuracy falls), before a warning is given.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.recent: deque[dict[str, Any]] = deque(maxlen=2 * steps)
        self.warned: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take one step's metrics; warn where the last ones show a run that cannot learn."""
        if not logs or "frac_reward_zero_std" not in logs:
            return
        self.recent.append(logs)
        for name in self._found() - self.warned:
            self.warned.add(name)
            if state.is_world_process_zero:
                logger.warning(
                    "Health at step %d, %s: for %d logs, %s", state.global_step, name, self.steps, REMEDIES[name]
                )

    def _found(self) -> set[str]:
        last = list(self.recent)[-self.steps :]
        found = set()
        if len(last) == self.steps:
            if all(log["frac_reward_zero_std"] == 1 and "distillation/kl" not in log for log in last):
                found.add("no signal")
            if all(log.get("completions/clipped_ratio") == 1 for log in last):
                found.add("all truncated")
            if all(log.get("alignment/no_reference") == 1 for log in last):
                found.add("no reference")
        if len(self.recent) == 2 * self.steps and self._change("speech/accuracy") < -0.1:
            columns = ("representation_alignment", "behavior_alignment")
            if any(self._change(f"rewards/{column}/mean") > 0.01 for column in columns):
                found.add("drifting apart")
            if self._change("distillation/kl") > 0.01:
                found.add("leaving the teacher")
        return found

    def _change(self, key: str) -> float:
        """Mean of the newer half of the window minus that of the older; 0 where either has no value."""
        values = [log.get(key) for log in self.recent]
        halves = [[v for v in half if v is not None] for half in (values[: self.steps], values[self.steps :])]
        return sum(halves[1]) / len(halves[1]) - sum(halves[0]) / len(halves[0]) if all(halves) else 0.0


class Publisher(TrainerCallback, ABC):
    """Who decides where a run that pushes may go, and writes its card; `tars_trl.share.publishing` has one.

    The trainer knows this interface alone: it looks for an instance among its callbacks.
    """

    @abstractmethod
    def prepare(self, trainer: Any, token: str | None, private: bool | None) -> bool:
        """See that the run may push to its repository, before that is created; returns whether it is private."""

    @abstractmethod
    def write_card(self, trainer: Any) -> None:
        """The card (README.md) of the output folder, in which `run.json` was just written."""


def publisher_of(trainer: Any) -> Publisher | None:
    """The publisher among a trainer's callbacks.

    Raises:
        SettingError: there is none, and the run is to be pushed.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Publisher):
            return callback
    if trainer.args.push_to_hub:
        raise SettingError(
            "push_to_hub=True without a publisher: nothing would keep the repository private, or what it holds from "
            "being overwritten. Add tars_trl.PublishCallback() to the trainer's callbacks, as the recipes do."
        )
    return None
