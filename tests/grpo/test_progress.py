from types import SimpleNamespace

from tars_trl.grpo.callbacks import TwinProgressCallback

STATE = SimpleNamespace(is_world_process_zero=True)


class Bar:
    """Stands for tqdm's."""

    def set_postfix(self, shown):
        self.shown = shown


def test_progress_line_shows_the_twins():
    callback = TwinProgressCallback()
    callback.training_bar = bar = Bar()
    logs = {"speech/accuracy": 0.5, "text/accuracy": 0.75, "gap/accuracy": 0.25, "reward": 1.234, "loss": 0.1}
    callback.on_log(None, STATE, None, logs)
    assert bar.shown == {"speech": "0.50", "text": "0.75", "gap": "0.25", "reward": "1.23"}
    callback.on_log(None, STATE, None, {"train_runtime": 3.0})
    assert bar.shown["speech"] == "0.50"  # a log without figures leaves them
    greedy = {f"eval_{kind}/accuracy_greedy": 0.25 for kind in ("speech", "text", "gap")}  # of EvaluationCallback
    callback.on_log(None, STATE, None, greedy)
    assert bar.shown == {"speech": "0.25", "text": "0.25", "gap": "0.25"}


def test_trainer_uses_it_where_there_is_a_bar(make_trainer, capsys):
    trainer = make_trainer(disable_tqdm=False, max_steps=1)
    assert any(isinstance(callback, TwinProgressCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    assert "speech=" in capsys.readouterr().err
    quiet = make_trainer(disable_tqdm=True)
    assert not any(isinstance(callback, TwinProgressCallback) for callback in quiet.callback_handler.callbacks)
