"""The gap as a measured curve: greedy accuracy in both modalities while a model trains."""

from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation

from ..data.answers import extract_strict
from ..data.prompts import MODALITIES, Modality
from ..sampling.complete import complete


class EvaluationCallback(TrainerCallback):
    """Answers a small set of questions in both modalities, greedily, every `steps` steps, and logs the figures.

    They go through the trainer's log, hence to trainer_state.json, wandb and TensorBoard:
    `eval_speech/accuracy_greedy`, `eval_speech/unreadable_greedy` (no choice found), `eval_speech/clipped_greedy` (cut
    off), `eval_speech/tokens_greedy` (mean), the same for `eval_text`, and `eval_gap/accuracy_greedy` (text minus
    speech, 0 to 1) and `eval_gap/recovery_rate_greedy` (percent of the model's own text accuracy; absent where that is
    0). Training is left as it was: random state, modes and the trainer's own metrics.

    Args:
        trainer: the trainer that it is added to.
        rows: questions in the schema of `tars_trl.data`, audio undecoded; processes share them.
        steps: measure every so many optimizer steps, and before the first and after the last one.
        batch_size: questions in a forward pass, per process.
        max_completion_length: most tokens of a completion; None for the trainer's `max_completion_length`.

    Raises:
        ValueError: no rows, `steps` below 1, or parameters spread over processes (FSDP, DeepSpeed ZeRO-3): every call
            of a module would gather them from all processes, which answer different numbers of batches.

    Example:
        `trainer.add_callback(EvaluationCallback(trainer, load_questions(folder, "test", limit=100, seed=0), steps=20))`
    """

    def __init__(
        self,
        trainer: Any,
        rows: Sequence[dict[str, Any]],
        steps: int = 50,
        *,
        batch_size: int = 16,
        max_completion_length: int | None = None,
    ):
        if len(rows) == 0 or steps < 1:
            raise ValueError(f"{len(rows)} rows every {steps} steps: nothing would be measured. Give some of both.")
        backend = DistributedBackend(trainer.accelerator)
        if backend.is_fsdp or backend.is_zero3:
            kind = "FSDP" if backend.is_fsdp else "DeepSpeed ZeRO-3"
            raise ValueError(
                f"The trainer runs under {kind}: parameters are spread over processes, and this callback asks the "
                "model process by process. Leave it out and evaluate checkpoints with tars-trl evaluate, or train "
                "with whole copies of the model (DDP, or ZeRO-2 by recipes/accelerate/zero2.yaml)."
            )
        self.trainer = trainer
        self.rows = rows
        self.steps = steps
        self.batch_size = batch_size
        self.max_completion_length = max_completion_length or trainer.args.max_completion_length
        self._measured_at = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The starting point; after a resume the step was measured before."""
        if state.global_step == 0:
            self._log(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self._log(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self._measured_at:
            self._log(state.global_step)

    def measure(self) -> dict[str, float]:
        """The figures of the model as it is now, the same on every process."""
        figures: dict[str, float] = {}
        for modality in MODALITIES:
            answers = gather_object(self._answers(modality))
            for name in ("accuracy", "unreadable", "clipped", "tokens"):
                mean = sum(answer[name] for answer in answers) / len(answers)
                figures[f"eval_{modality}/{name}_greedy"] = mean
        heard, read = (figures[f"eval_{modality}/accuracy_greedy"] for modality in MODALITIES)
        figures["eval_gap/accuracy_greedy"] = read - heard
        if read > 0:
            figures["eval_gap/recovery_rate_greedy"] = 100 * heard / read
        return figures

    def _answers(self, modality: Modality) -> list[dict[str, float]]:
        """What counts of each answer to this process's share of the questions."""
        trainer, accelerator, args = self.trainer, self.trainer.accelerator, self.trainer.args
        places = range(accelerator.process_index, len(self.rows), accelerator.num_processes)
        rows = [self.rows[place] for place in places]
        options = {"batch_size": self.batch_size, "max_completion_length": self.max_completion_length}
        checkpointing = args.gradient_checkpointing_kwargs
        answers: list[dict[str, float]] = []
        with unwrap_model_for_generation(
            trainer.model_wrapped, accelerator, gradient_checkpointing_kwargs=checkpointing
        ) as model:
            completions = complete(model, trainer.processing_class, rows, modality, seed=args.seed, **options)
            for row, completion in zip(rows, completions, strict=True):
                chosen = extract_strict(completion.text, row["options"])
                counts = {"accuracy": chosen == row["answer_index"], "unreadable": chosen is None}
                answers.append({**counts, "clipped": completion.truncated, "tokens": completion.tokens})
        return answers

    def _log(self, step: int) -> None:
        self._measured_at = step
        # GRPOTrainer's own log would empty its training metrics into this line, in the middle of a logging window.
        pending = self.trainer.control.should_log
        Trainer.log(self.trainer, self.measure())
        self.trainer.control.should_log = pending  # logging clears it, and the step's own line would be lost
