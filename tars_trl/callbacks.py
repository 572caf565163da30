"""The progress line: both accuracies and the gap beside the bar, instead of fifty metrics as a dict."""

from typing import Any

from transformers import ProgressCallback

SHOWN = {
    "speech": ("speech/accuracy", "eval_speech/accuracy", "eval_speech/accuracy_greedy"),
    "text": ("text/accuracy", "eval_text/accuracy", "eval_text/accuracy_greedy"),
    "gap": ("gap/accuracy", "eval_gap/accuracy", "eval_gap/accuracy_greedy"),
    "reward": ("reward", "eval_reward"),
    "no_ref": ("alignment/no_reference",),
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
