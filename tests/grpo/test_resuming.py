"""A checkpoint is gone on from exactly, or not at all: a fault in each of its files, another run, another folder."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from tars_trl.errors import SettingError
from tars_trl.grpo import resuming
from tars_trl.grpo.resuming import MANIFEST, checkpoint_problem, last_checkpoint
from tests.conftest import questions

SETTINGS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "behavior_weight": 0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a run with two checkpoints, made once."""
    import copy

    from tiny_omni import tiny_random

    from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
    from tests.conftest import odd_reward

    model, processor = tiny_random(0)
    folder = tmp_path_factory.mktemp("run")
    args = TARSGRPOConfig(
        str(folder), per_device_train_batch_size=8, max_completion_length=8, bf16=False, report_to=[],
        gradient_checkpointing=False, reference_reward="odd_reward", mask_truncated_completions=False,
        log_completions=True, num_completions_to_print=0, dataloader_pin_memory=False, disable_tqdm=True, **SETTINGS,
    )  # fmt: skip
    trainer = TARSGRPOTrainer(
        copy.deepcopy(model), [odd_reward, format_reward], args, questions(), processing_class=processor
    )
    trainer.train()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it that may be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "out"))


FILES = [
    *("adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("trainer_state.json", "tokenizer.json", "processor_config.json"),
]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "said"), [(Path.unlink, "is missing"), (cut, "bytes instead of"), (flip, "changed")]
)
def test_a_damaged_checkpoint_is_refused_or_passed_over(run, make_trainer, name, damage, said, caplog):
    """Named, it is refused with what is wrong; `last` takes the one before it and says why."""
    damage(run / "checkpoint-2" / name)
    assert said in checkpoint_problem(run / "checkpoint-2") and name in checkpoint_problem(run / "checkpoint-2")
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(run) == str(run / "checkpoint-1")
    assert "checkpoint-2 is passed over" in caplog.text and name in caplog.text


def test_a_named_checkpoint_that_is_not_whole_is_refused(run, make_trainer):
    trainer = make_trainer(output="new", **SETTINGS)
    (run / "checkpoint-2" / MANIFEST).unlink()
    with pytest.raises(ValueError, match="it has no manifest.json: its save was cut short"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    (run / "checkpoint-1" / MANIFEST).write_text('{"step": 1')
    with pytest.raises(ValueError, match="its manifest.json is damaged"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert last_checkpoint(run) is None and last_checkpoint(run / "nowhere") is None
    with pytest.raises(ValueError, match="there is no such folder. Did you mean .*checkpoint-2"):
        trainer.train(resume_from_checkpoint=str(run / "checkpont-2"))


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"resumable": true, "files": {"a": 1}}', "[" * 100_000])
def test_a_manifest_of_another_shape_is_damaged(run, content):
    (run / "checkpoint-2" / MANIFEST).write_text(content)
    assert checkpoint_problem(run / "checkpoint-2") == "its manifest.json is damaged"
    assert last_checkpoint(run) == str(run / "checkpoint-1")


def test_last_loses_no_weights(run, make_trainer, caplog):
    """Where no checkpoint is whole: one whose save was cut short is put aside, one that was saved is not replaced."""
    (run / "trainer_state.json").unlink(missing_ok=True)
    (run / "checkpoint-1" / MANIFEST).unlink()
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        make_trainer(output="out", **SETTINGS).train(resume_from_checkpoint="last")
    (run / "checkpoint-2" / MANIFEST).unlink()
    before = (run / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    for number in (1, 2):
        make_trainer(output="out", **SETTINGS | {"max_steps": 1}).train(resume_from_checkpoint="last")
        (run / "checkpoint-1" / MANIFEST).unlink()
        assert (run / f"cut-short-{number}-checkpoint-1").is_dir()
    assert (run / "cut-short-1-checkpoint-2" / "adapter_model.safetensors").read_bytes() == before


def test_a_checkpoint_without_optimizer_is_refused(make_trainer):
    trainer = make_trainer(output="model_only", save_only_model=True, **SETTINGS)
    trainer.train()
    with pytest.raises(ValueError, match="saved with save_only_model, without optimizer"):
        make_trainer(output="new").train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, r"seed \(42 there, 7 here\)"),
        ({"num_generations": 4}, r"num_generations \(8 there, 4 here\)"),
        ({"gradient_accumulation_steps": 2}, r"batch \(8 there, 16 here\)"),
        ({"dataset": questions(3)}, "questions"),
        ({"dataset": questions(4).map(lambda row: {"answer_index": (row["answer_index"] + 1) % 4})}, "questions"),
        ({"dataset": questions(4).map(lambda row: {"audio": questions(1)[0]["audio"]})}, "questions"),
    ],
)
def test_another_run_is_refused(run, make_trainer, change, said):
    trainer = make_trainer(output="new", **SETTINGS | change)
    with pytest.raises(ValueError, match=f"was saved by another run: .*{said}.*No step would go on"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))


def test_other_settings_are_said(run, make_trainer, caplog):
    trainer = make_trainer(
        output="new", learning_rate=5e-4, representation_weight=0.5, log_completions=True, **SETTINGS
    )
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    said = next(record.message for record in caplog.records if "not exactly" in record.message)
    assert "representation_weight 1.0 -> 0.5" in said and "learning_rate 2e-05 -> 0.0005" in said
    assert "logging_steps" not in said and "output_dir" not in said


def test_last_says_what_it_does(run, make_trainer, caplog):
    same = {"learning_rate": 2e-5, "logging_steps": 10, "log_completions": True, "num_completions_to_print": 0}
    with caplog.at_level(logging.WARNING):
        make_trainer(output="fresh", **SETTINGS, **same).train(resume_from_checkpoint="last")
    assert "starts anew: there is no whole checkpoint in" in caplog.text
    caplog.clear()
    trainer = make_trainer(output="out", **SETTINGS | {"max_steps": 3}, **same)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint="last")
    assert "The run goes on from" in caplog.text and "checkpoint-2" in caplog.text
    assert trainer.state.global_step == 3


def test_the_main_process_looks_and_tells_the_others(run, make_trainer, monkeypatch):
    """A checkpoint is hashed once, whatever the number of processes; what is refused is refused on each."""
    trainer = make_trainer(output="other", **SETTINGS)
    monkeypatch.setattr(type(trainer.accelerator), "is_main_process", False)
    monkeypatch.setattr(resuming, "_digest", None)  # which cannot be called
    checkpoint = str(run / "checkpoint-2")
    for told in ([checkpoint, None], [None, None], [None, "It cannot work."]):
        monkeypatch.setattr(
            resuming, "broadcast_object_list", lambda looked, told=told: looked == [None, None] and told
        )
        if told[1]:
            with pytest.raises(SettingError, match="It cannot work"):
                resuming.checkpoint_to_continue(trainer, "last")
        else:
            assert resuming.checkpoint_to_continue(trainer, "last") == told[0]


def test_a_folder_is_one_runs(run, make_trainer):
    """A second run would leave its completions among those of the first, and `last` would go on from the other's."""
    with pytest.raises(ValueError, match="holds a run already.*--overwrite_output_dir true"):
        make_trainer(output="out", **SETTINGS).train()
    assert (run / "checkpoint-2" / MANIFEST).is_file()
    other = make_trainer(output="other", **SETTINGS)
    other.train()
    with pytest.raises(ValueError, match="holds a run already"):  # a named checkpoint is another run's
        make_trainer(output="out", **SETTINGS).train(resume_from_checkpoint=f"{other.args.output_dir}/checkpoint-1")
    other.save_model()
    for path in run.parent.glob("other/checkpoint-*"):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match="holds a run already .adapter_config.json"):  # of which the adapter is left
        make_trainer(output="other", **SETTINGS).train()
    trainer = make_trainer(output="out", overwrite_output_dir=True, save_strategy="no", max_steps=1, behavior_weight=0)
    trainer.train()
    assert not list(run.glob("checkpoint-*")) and not list(run.glob("completions/*.parquet"))
    assert json.loads((run / "run.json").read_text())["settings"]["max_steps"] == 1


def test_old_checkpoints_go_once_the_new_one_is_whole(make_trainer, monkeypatch):
    """Killed before the manifest, the one before it is still there, although `save_total_limit` is 1."""
    from tars_trl.grpo import kept_run as module

    trainer = make_trainer(output="limited", save_total_limit=1, **SETTINGS)
    seal, sealed = module.seal_checkpoint, []

    def dying(trainer, limit):
        if sealed:
            raise KeyboardInterrupt
        sealed.append(limit)
        seal(trainer, limit)

    monkeypatch.setattr(module, "seal_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert sealed == [1] and last_checkpoint(folder) == str(folder / "checkpoint-1")
    monkeypatch.setattr(module, "seal_checkpoint", seal)
    again = make_trainer(output="limited", save_total_limit=1, **SETTINGS)
    again.train(resume_from_checkpoint="last")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
