"""Frames of a run, from whichever log it left."""

import json
import pickle
import struct

import numpy as np
import pandas as pd
import pytest
import torch

from tars_trl import TARSGRPOConfig
from tars_trl.evaluation.metrics import paired_result
from tars_trl.evaluation.results import write_results
from tars_trl.report import frames as runs

HISTORY = [
    {"step": 1, "speech/accuracy": 0.25, "text/accuracy": 0.5, "gap/accuracy": 0.25, "gap/recovery_rate": 50.0},
    {"step": 2, "speech/accuracy": 0.5, "text/accuracy": 1.0, "gap/accuracy": 0.5, "gap/recovery_rate": None},
    {"step": 2, "eval_speech/accuracy": 0.75},
    {"step": 2, "train_runtime": 3.5},
]
PARTS = [{"type": "text", "text": "Think."}]


def save_state(folder, history):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def save_completions(folder, step, rows):
    (folder / "completions").mkdir(exist_ok=True, parents=True)
    pd.DataFrame([{"step": step, **row} for row in rows]).to_parquet(
        folder / "completions" / f"completions_{step:05d}.parquet"
    )


def completion(modality, text, **columns):
    content = [{"type": "audio", "text": None}] if modality == "speech" else [{"type": "text", "text": "One?"}]
    prompt = [{"role": "system", "content": PARTS}, {"role": "user", "content": content}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}], "modality": modality, **columns}


def test_one_row_a_step_from_trainer_state(tmp_path):
    save_state(tmp_path, HISTORY)
    metrics = runs.metrics_frame(runs.load_run(tmp_path))
    assert metrics.index.tolist() == [1, 2]
    assert metrics.loc[2, ["text/accuracy", "eval_speech/accuracy", "train_runtime"]].tolist() == [1.0, 0.75, 3.5]
    assert np.isnan(metrics.loc[2, "gap/recovery_rate"]) and np.isnan(metrics.loc[1, "eval_speech/accuracy"])


def test_newest_checkpoint_where_the_folder_has_no_state(tmp_path):
    save_state(tmp_path / "checkpoint-9", HISTORY[:1])
    save_state(tmp_path / "checkpoint-10", HISTORY)
    (tmp_path / "checkpoint-best").mkdir()
    assert runs.load_run(tmp_path, "mine").history == HISTORY and runs.load_run(tmp_path, "mine").name == "mine"


def test_tensorboard(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "runs" / "here") as writer:
        for step in (1, 2):
            writer.add_scalar("train/speech/accuracy", step / 4, step)
        writer.add_scalar("eval/speech/accuracy", 0.75, 2)
    metrics = runs.metrics_frame(runs.load_run(tmp_path))
    assert metrics["speech/accuracy"].tolist() == [0.25, 0.5]
    assert metrics.loc[2, "eval_speech/accuracy"] == 0.75


def test_a_run_that_was_started_again_counts_from_there(tmp_path):
    """Killed after step 4, begun anew, killed after step 2, resumed from step 1: a newer log wins from its start."""
    from torch.utils.tensorboard import SummaryWriter

    for number, (start, steps) in enumerate((("Nov30_10", (1, 2, 3, 4)), ("Dec01_09", (1, 2)), ("Dec01_10", (2, 3)))):
        with SummaryWriter(tmp_path / "run" / "runs" / f"{start}-00-00_host", filename_suffix=f".{number}") as writer:
            for step in steps:
                writer.add_scalar("train/loss", number + step / 10, step)
        for file in (tmp_path / "run").rglob(f"*.{number}"):
            file.rename(file.with_name(f"events.out.tfevents.{1_700_000_000 + number}.host"))
    metrics = runs.metrics_frame(runs.load_run(tmp_path / "run"))
    assert metrics["loss"].round(1).to_dict() == {1: 1.1, 2: 2.2, 3: 2.3}
    with SummaryWriter(tmp_path / "other") as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    with pytest.raises(ValueError, match="holds the logs of 2 runs, in .*other, .*run: one curve would mix them"):
        runs.load_run(tmp_path)


def test_wandb_runs_of_one_folder_are_not_mixed(tmp_path):
    for start, last in (("20260101_100000", 9), ("20260102_090000", 2)):
        folder = tmp_path / "wandb" / f"offline-run-{start}-id"
        folder.mkdir(parents=True)
        entries = [{"train/global_step": step, "train/loss": last} for step in range(1, last + 1)]
        (folder / f"run-{99 - last}.wandb").write_bytes(wandb_file(entries))
    assert runs.metrics_frame(runs.load_run(tmp_path))["loss"].to_dict() == {1: 2, 2: 2}


def wandb_file(entries):
    """Bytes of a wandb offline file with history records, in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = bytearray(b":W&B" + bytes(3))
    for entry in entries:
        record = Record()
        for key, value in entry.items():
            item = record.history.item.add()
            item.nested_key.append(key)
            item.value_json = json.dumps(value)
        left, first = record.SerializeToString(), True
        while left or first:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            piece, left = left[: room - 7], left[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not left]
            data += bytes(4) + struct.pack("<HB", len(piece), kind) + piece
            first = False
    return bytes(data)


def test_wandb_offline_with_records_over_several_blocks(tmp_path):
    entries = [
        {"train/global_step": step, "train/speech/accuracy": step / 100, "eval/text/accuracy": 0.5, "_runtime": 3,
         "train/padding": "x" * 700 * step}
        for step in range(1, 100)
    ]  # fmt: skip
    data = wandb_file(entries)
    assert len(data) > 20 * 32768
    folder = tmp_path / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    (folder / "run-1.wandb").write_bytes(data)
    metrics = runs.metrics_frame(runs.load_run(tmp_path))
    assert metrics.index.tolist() == list(range(1, 100))
    assert metrics["speech/accuracy"].tolist() == [step / 100 for step in range(1, 100)]
    assert (metrics["eval_text/accuracy"] == 0.5).all() and "_runtime" not in metrics

    (folder / "run-1.wandb").write_bytes(data[:-100])  # killed while it wrote the last record
    assert runs.metrics_frame(runs.load_run(tmp_path)).index.tolist() == list(range(1, 99))


def test_a_real_wandb_offline_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with wandb.init(mode="offline", project="test", dir=str(tmp_path), settings={"silent": True}) as run:
        for step in (1, 2, 3):
            run.log({"train/global_step": step, "train/text/accuracy": step / 4})
    wandb.teardown()  # its service process still holds the end of the file
    assert runs.metrics_frame(runs.load_run(tmp_path))["text/accuracy"].tolist() == [0.25, 0.5, 0.75]


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such run"):
        runs.load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no log.*trainer.save_state"):
        runs.load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="log_completions: true"):
        runs.completions_frame(tmp_path)


def test_completions_as_text_over_all_files(tmp_path):
    save_completions(tmp_path, 1, [completion("speech", "a", key="q", my_reward=1.0, advantage=0.5)])
    save_completions(tmp_path, 2, [completion("text", "b", key="q", my_reward=None, advantage=0.0)])
    frame = runs.completions_frame(tmp_path)
    assert frame["completion"].tolist() == ["a", "b"] and frame["step"].tolist() == [1, 2]
    assert frame["prompt"].tolist() == ["system: Think.\n\nuser: [audio]", "system: Think.\n\nuser: One?"]
    assert runs.reward_columns(frame) == ["my_reward"]
    turn = {"role": "user", "content": [{"type": "audio", "text": "One?"}, {"type": "text", "text": "Answer."}]}
    assert runs.conversation_text([turn]) == "user: [audio] One? Answer."


def test_compare_runs_over_the_last_steps(tmp_path):
    save_state(tmp_path / "a", HISTORY)
    save_state(tmp_path / "b", [{"step": 7, "speech/accuracy": 0.5}])  # a baseline on one modality
    table = runs.compare_runs([runs.load_run(tmp_path / name) for name in "ab"], last=0.5)
    assert table.loc["a", ["steps", "speech_accuracy", "text_accuracy", "gap", "recovery_rate"]].tolist() == [
        2, 0.5, 1.0, 0.5, 50.0,
    ]  # fmt: skip
    assert table.loc["b", "speech_accuracy"] == 0.5 and pd.isna(table.loc["b", "gap"])
    other = runs.Run(tmp_path, "other", [{"step": 1, "loss": 0.5}])
    with pytest.raises(runs.NotLoggedError, match="neither speech/accuracy nor text/accuracy, only loss"):
        runs.compare_runs([other])


def test_runs_of_one_name_are_told_apart(tmp_path):
    for name, accuracy in (("a", 0.25), ("b", 0.5)):
        save_state(tmp_path / name / "demo", [{"step": 1, "speech/accuracy": accuracy}])
    first, second = (runs.load_run(tmp_path / name / "demo") for name in "ab")
    table = runs.compare_runs([first, second])
    assert table["speech_accuracy"].to_dict() == {str(first.path): 0.25, str(second.path): 0.5}
    with pytest.raises(ValueError, match="a/demo more than once: give each run once"):
        runs.compare_runs([first, first, second])


def test_one_pair_from_whatever_measured_it(tmp_path):
    pair = paired_result([True, False], [True, True])
    written = {
        "results_1.json": {"pairs": {"demo": pair}},
        "results_2.json": {"pairs": {"a": {}, "b": {}}, "averages": {"average of a, b": pair}},
        "result.json": {"speech": [True, False], "text": [True, True], "keys": ["q0", "q1"]},
        "summary.json": {"before": {}, "after": pair},
    }
    for name, content in written.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert json.dumps(runs.read_pair(tmp_path / name)) == json.dumps(pair), name
    assert runs.read_pair(tmp_path)["gap"] == 0.5  # the latest evaluation in a folder
    (tmp_path / "results_3.json").write_text(json.dumps({"pairs": {"demo": pair, "demo_cascade": pair}}))
    with pytest.raises(runs.NotLoggedError, match="holds 2 results in both modalities .demo, demo_cascade., where one"):
        runs.read_pair(tmp_path)


def test_settings_are_read_and_nothing_else_is_unpickled(tmp_path):
    (tmp_path / "run").mkdir()
    settings = TARSGRPOConfig(str(tmp_path / "run"), representation_weight=0.7, bf16=False, use_cpu=True, report_to=[])
    torch.save(settings, tmp_path / "run" / "training_args.bin")
    assert runs.run_settings(tmp_path / "run")["representation_weight"] == 0.7
    assert runs.run_settings(tmp_path) == {}

    torch.save(Harmful(tmp_path / "harm"), tmp_path / "training_args.bin")
    with pytest.raises(pickle.UnpicklingError):
        runs.run_settings(tmp_path)
    assert not (tmp_path / "harm").exists()


class Harmful:
    """What a malicious file would hold."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_samples_pair_the_modalities(tmp_path):
    def line(key, acc, text, **more):
        doc = {"question": "One?", "options": ["one", "two"]}
        return {"key": key, "acc": acc, "doc": doc, "target": "A", "resps": [[text]], "domain": None, **more}

    samples = {
        "demo_speech": [line("a", 0.0, "B."), line("b", 1.0, "A.", domain="x")],
        "demo_text": [line("b", 1.0, "A!", domain="x"), line("a", 1.0, "A."), line("c", 1.0, "unpaired")],
        "other_text": [line("a", 1.0, "A.")],
    }
    write_results(tmp_path / "model", {"results": {}}, samples, "2026-01-01T00-00-00")
    frame = runs.samples_frame(tmp_path).set_index("key")
    assert frame["speech_right"].to_dict() == {"a": False, "b": True} and frame["text_right"].all()
    assert frame.loc["a", ["task", "domain", "speech_completion", "text_completion"]].tolist() == [
        "demo", "demo", "B.", "A.",
    ]  # fmt: skip
    domains = runs.domain_frame(frame)
    assert domains.loc["demo", ["questions", "speech", "text"]].tolist() == [1, 0.0, 1.0]
    assert domains.loc["x", "speech_interval"][1] == 1.0

    write_results(tmp_path / "text", {"results": {}}, {"demo_text": samples["demo_text"]}, "2026-01-01T00-00-00")
    with pytest.raises(ValueError, match="no task was answered both.*--modality both"):
        runs.samples_frame(tmp_path / "text")
