"""Frames of a run, from the files it left."""

import json

import numpy as np
import pandas as pd
import pytest

from tars_trl.errors import NotLoggedError, TarsError
from tars_trl.evaluation.results import write_results
from tars_trl.report import frames

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
    metrics = frames.metrics_frame(frames.load_run(tmp_path))
    assert metrics.index.tolist() == [1, 2]
    assert metrics.loc[2, ["text/accuracy", "eval_speech/accuracy", "train_runtime"]].tolist() == [1.0, 0.75, 3.5]
    assert np.isnan(metrics.loc[2, "gap/recovery_rate"]) and np.isnan(metrics.loc[1, "eval_speech/accuracy"])


def test_newest_checkpoint_where_the_folder_has_no_state(tmp_path):
    save_state(tmp_path / "checkpoint-9", HISTORY[:1])
    save_state(tmp_path / "checkpoint-10", HISTORY)
    (tmp_path / "checkpoint-best").mkdir()
    assert frames.load_run(tmp_path, "mine").history == HISTORY and frames.load_run(tmp_path, "mine").name == "mine"


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such run"):
        frames.load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no trainer_state.json.*trainer.save_state"):
        frames.load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="log_completions: true"):
        frames.completions_frame(tmp_path)


def test_damaged_files_are_named(tmp_path):
    state, parquet = tmp_path / "trainer_state.json", tmp_path / "completions" / "completions_00001.parquet"
    for content in ('{"log_his', "[]", "[" * 100_000, "{}", '{"log_history": [1]}', '{"log_history": [{"loss": 1}]}'):
        state.write_text(content)
        with pytest.raises(TarsError, match=f"^{state} holds no"):
            frames.load_run(tmp_path)
    save_completions(tmp_path, 1, [{"completion": "a"}])
    with pytest.raises(NotLoggedError, match=f"^{parquet} holds no completions .*prompt"):
        frames.completions_frame(tmp_path)
    parquet.write_bytes(b"PAR1 junk")
    with pytest.raises(NotLoggedError, match=f"^{parquet} holds no completions"):
        frames.completions_frame(tmp_path)


def test_completions_as_text_over_all_files(tmp_path):
    save_completions(tmp_path, 1, [completion("speech", "a", key="q", my_reward=1.0, advantage=0.5)])
    save_completions(tmp_path, 2, [completion("text", "b", key="q", my_reward=None, advantage=0.0)])
    frame = frames.completions_frame(tmp_path)
    assert frame["completion"].tolist() == ["a", "b"] and frame["step"].tolist() == [1, 2]
    assert frame["prompt"].tolist() == ["system: Think.\n\nuser: [audio]", "system: Think.\n\nuser: One?"]
    assert frames.reward_columns(frame) == ["my_reward"]
    turn = {"role": "user", "content": [{"type": "audio", "text": "One?"}, {"type": "text", "text": "Answer."}]}
    assert frames.conversation_text([turn]) == "user: [audio] One? Answer."


def test_means_of_runs_over_the_last_steps(tmp_path):
    save_state(tmp_path / "a", HISTORY)
    save_state(tmp_path / "b", [{"step": 7, "speech/accuracy": 0.5}])  # a baseline on one modality
    table = frames.final_means_frame([frames.load_run(tmp_path / name) for name in "ab"], last=0.5)
    assert table.loc["a", ["steps", "speech_accuracy", "text_accuracy", "gap", "recovery_rate"]].tolist() == [
        2, 0.5, 1.0, 0.5, 50.0,
    ]  # fmt: skip
    assert table.loc["b", "speech_accuracy"] == 0.5 and pd.isna(table.loc["b", "gap"])
    other = frames.LoggedRun(tmp_path, "other", [{"step": 1, "loss": 0.5}])
    with pytest.raises(NotLoggedError, match="neither speech/accuracy nor text/accuracy, only loss"):
        frames.final_means_frame([other])


def test_runs_of_one_name_are_told_apart(tmp_path):
    for name, accuracy in (("a", 0.25), ("b", 0.5)):
        save_state(tmp_path / name / "demo", [{"step": 1, "speech/accuracy": accuracy}])
    first, second = (frames.load_run(tmp_path / name / "demo") for name in "ab")
    table = frames.final_means_frame([first, second])
    assert table["speech_accuracy"].to_dict() == {str(first.path): 0.25, str(second.path): 0.5}
    with pytest.raises(ValueError, match="a/demo more than once: give each run once"):
        frames.final_means_frame([first, first, second])


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
    frame = frames.samples_frame(tmp_path).set_index("key")
    assert frame["speech_right"].to_dict() == {"a": False, "b": True} and frame["text_right"].all()
    assert frame.loc["a", ["task", "domain", "speech_completion", "text_completion"]].tolist() == [
        "demo", "demo", "B.", "A.",
    ]  # fmt: skip
    domains = frames.domain_frame(frame)
    assert domains.loc["demo", ["questions", "speech", "text"]].tolist() == [1, 0.0, 1.0]
    assert domains.loc["x", "speech_interval"][1] == 1.0

    write_results(tmp_path / "text", {"results": {}}, {"demo_text": samples["demo_text"]}, "2026-01-01T00-00-00")
    with pytest.raises(ValueError, match="no task was answered both.*--modality both"):
        frames.samples_frame(tmp_path / "text")
