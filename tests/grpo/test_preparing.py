"""What is refused before a model is loaded or trained, by name."""

import logging
import os
from importlib import metadata

import pytest
import torch
from datasets import Audio
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer
from tars_trl.commands import train
from tars_trl.errors import QuestionError, SettingError
from tars_trl.grpo import preparing
from tars_trl.grpo.resuming import named_checkpoint
from tars_trl.grpo.rewards import accuracy_reward, check_columns, format_reward
from tars_trl.models import architecture_of
from tars_trl.models.loading import number_of_parameters
from tests.conftest import questions
from tests.models.tiny import ARCHITECTURES


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=2, target_modules="all-linear"),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj", "out_proj"]),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        LoHaConfig(r=2, target_modules=["q_proj"]),
    ],
)
def test_adapters_on_the_audio_side_are_refused(make_trainer, adapter):
    with pytest.raises(ValueError, match=r"trainable parameters are on the audio .* such as .*tower.*target_modules"):
        make_trainer(peft_config=adapter)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if architecture_of(name).longest_clip])
def test_clips_that_a_processor_would_cut_are_refused(make_trainer, name):
    model, processor = ARCHITECTURES[name](0)
    longest = architecture_of(name).longest_clip
    with pytest.raises(SettingError, match=rf"max_audio_seconds={longest + 1:g}, and .* hears {longest:g} s"):
        make_trainer(build_model=model, processing_class=processor, max_audio_seconds=longest + 1)


def test_adapters_that_come_with_the_model_and_are_frozen_are_named(make_trainer, tiny, caplog):
    make_trainer()
    assert "came with" not in caplog.text
    both = get_peft_model(tiny[0], LoraConfig(r=2, target_modules=["q_proj"]))
    with caplog.at_level(logging.WARNING, logger=preparing.__name__):
        trainer = make_trainer(build_model=both)
    (said,) = [record.getMessage() for record in caplog.records if "adapters that the model came with" in record.msg]
    sides = tuple(trainer.architecture.audio_modules.values())
    trained = [name for name, weight in trainer._base.named_parameters() if weight.requires_grad]
    assert trained and not any(name.startswith(sides) for name in trained)
    assert "audio_tower.layers.0.self_attn.q_proj" in said and "language_model" not in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"report_to": ["nothing_such"]}, r"report_to=\['nothing_such'\]: nothing_such is not supported"),
        ({"report_to": ["comet_ml"]}, r"report_to=\['comet_ml'\]: .*pip install comet-ml.*report_to: none"),
        ({"use_vllm": True}, "use_vllm=True: vLLM is not installed here"),
    ],
)
def test_what_a_run_needs_is_looked_for_before_the_model(monkeypatch, tmp_path, settings, said):
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    monkeypatch.setattr(preparing, "load_model", None)
    args = TARSGRPOConfig(**{"output_dir": str(tmp_path / "out"), "report_to": [], "behavior_weight": 0, **settings})
    with pytest.raises(SettingError, match=said):
        TARSGRPOTrainer("some/model", [accuracy_reward], args, questions())


@pytest.mark.parametrize(
    ("place", "said"),
    [("file", "there is a file, "), ("file/out", "there is a file, "), ("closed/out", "may not write to")],
)
def test_a_run_without_a_place_is_refused_before_the_model(tmp_path, monkeypatch, place, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed")  # root may write everywhere
    monkeypatch.setattr(preparing, "load_model", None)
    args = TARSGRPOConfig(str(tmp_path / place), report_to=[], behavior_weight=0)
    with pytest.raises(SettingError, match=f"output_dir=.*{said}"):
        TARSGRPOTrainer("some/model", [accuracy_reward], args, questions())


def test_training_from_an_adapter_alone_says_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SettingError, match=r"is an adapter, .* tars-trl export --format merged"):
        train.main(["--model", str(tmp_path), "--dataset", "x", "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_rows_are_plain_values_whatever_their_format(kind):
    args = TARSGRPOConfig("out", report_to=[])
    (row, *_) = preparing.usable_questions(questions().with_format(kind), args, reward_funcs=[accuracy_reward])
    assert type(row["answer_index"]) is int and type(row["options"]) is list and type(row["prompt"]) is list


def test_a_second_recording_is_not_decoded():
    rows = questions()
    rows = rows.add_column("second", [{"bytes": row["bytes"], "path": None} for row in rows["audio"]])
    rows = rows.cast_column("second", Audio())
    (row, *_) = preparing.usable_questions(rows, TARSGRPOConfig("out", report_to=[]))
    assert row["second"]["bytes"] == rows.cast_column("second", Audio(decode=False))[0]["second"]["bytes"]


@pytest.mark.parametrize("named", ["checkpont-2", "LATEST"])
def test_a_checkpoint_that_is_nowhere_is_named_before_anything_is_loaded(tmp_path, monkeypatch, named):
    (tmp_path / "checkpoint-2").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparing, "load_model", None)
    with pytest.raises(SettingError, match=f"^resume_from_checkpoint='{named}': there is no such folder"):
        TARSGRPOTrainer(
            "some/model", [accuracy_reward], TARSGRPOConfig("out", report_to=[], resume_from_checkpoint=named)
        )


@pytest.mark.parametrize("wanted", [None, False, "", "false"])
def test_no_checkpoint_is_a_fresh_start(wanted):
    assert named_checkpoint(wanted) is None
    assert named_checkpoint(True) == named_checkpoint("True") == named_checkpoint("LAST") == "last"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.remove_columns("answer_index"), r"accuracy_reward asks for \['answer_index'\]"),
        (lambda rows: rows.remove_columns("options"), r"accuracy_reward asks for \['options'\]"),
        (lambda rows: rows.add_column("images", [None] * len(rows)), r"TRL gives \['images'\] of its own"),
        (lambda rows: rows.add_column("prompts", [""] * len(rows)), r"TRL gives \['prompts'\] of its own"),
    ],
)
def test_columns_that_rewards_cannot_work_with_are_refused(change, said):
    with pytest.raises(QuestionError, match=said):
        check_columns(change(questions()).column_names, [accuracy_reward, format_reward])


def test_without_labels_other_rewards_can_be_trained():
    check_columns(questions().remove_columns(["answer_index", "options"]).column_names, [format_reward, len])


def test_a_mistyped_embedding_model_is_named_before_a_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(preparing, "load_model", None)
    config = TARSGRPOConfig("out", report_to=[], behavior_model=f"{tmp_path}/nowhere")
    with pytest.raises(SettingError, match="behavior_model=.*there is no such folder"):
        TARSGRPOTrainer("some/model", [accuracy_reward], config, questions())


def test_a_large_model_does_not_start_on_a_cpu_unasked(model_folder, monkeypatch):
    """The 7B file on a laptop: it would start, and never end."""
    assert 100_000 < number_of_parameters(model_folder) < 1_000_000
    monkeypatch.setattr(preparing, "LARGE", 100_000)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    unasked = TARSGRPOConfig("out", report_to=[])
    assert unasked.use_cpu and unasked.on_cpu_for_want_of_better
    with pytest.raises(ValueError, match=r"has 0.0 billion parameters, and there is no accelerator.*--use_cpu true"):
        preparing.prepare_training(model_folder, unasked)
    asked = TARSGRPOConfig("out", report_to=[], use_cpu=True)
    assert preparing.prepare_training(model_folder, asked)[0] is not None


def test_an_empty_data_set_is_refused(make_trainer):
    with pytest.raises(ValueError, match="The data set has no rows"):
        make_trainer(dataset=questions().select([]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": "dappo"}, "loss_type='dappo' is not a choice. Use one of grpo, dapo"),
        ({"scale_rewards": "groups"}, "scale_rewards='groups' is not a choice"),
        ({"num_iterations": 0}, "num_iterations=0 is out of range. Give 1 or more"),
        ({"epsilon": -0.1}, "epsilon=-0.1 is out of range"),
        ({"epsilon_high": -0.1}, "epsilon_high=-0.1 is out of range"),
        ({"lora_alpha": 0}, "lora_alpha=0 is out of range"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not a finite number"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range. Give more than 0 and at most 100"),
        ({"beta": float("inf")}, "beta=inf is not a finite number"),
        ({"temperature": 0.0}, "temperature=0.0 is out of range"),
        ({"representation_weight": 1e9}, "representation_weight=1000000000.0 is out of range"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5 is out of range"),
        ({"max_audio_seconds": 0}, "max_audio_seconds=0 is out of range"),
        ({"on_bad_audio": "drop"}, "on_bad_audio='drop' is not a choice. Use one of refuse, skip"),
        ({"behavior_device": "nowhere"}, "behavior_device='nowhere': nothing can be computed there"),
    ],
)
def test_settings_are_refused_when_they_are_made(settings, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        TARSGRPOConfig("out", report_to=[], **settings)


def test_a_device_that_is_elsewhere_can_be_planned_and_not_run():
    settings = TARSGRPOConfig("out", report_to=[], behavior_device="cuda:99")
    with pytest.raises(SettingError, match="behavior_device='cuda:99' is not on this machine"):
        preparing.own_settings(settings)


def test_tokens_that_are_none_are_named():
    with pytest.raises(SettingError, match="suppress_tokens='x' is no list of token ids"):
        preparing.suppress(TARSGRPOConfig("out", report_to=[], generation_kwargs={"suppress_tokens": "x"}), [1])
