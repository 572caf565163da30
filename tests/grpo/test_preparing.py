"""What is refused before a model is loaded or trained, by name."""

import pytest
import torch
from peft import LoraConfig

from tars_trl import TARSGRPOConfig
from tars_trl.grpo import preparing
from tars_trl.models.loading import number_of_parameters
from tests.conftest import questions


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "out_proj"]])
def test_adapters_on_the_audio_side_are_refused(make_trainer, targets):
    with pytest.raises(
        ValueError, match="LoRA adapters are on the audio or vision side, such as model.*target_modules"
    ):
        make_trainer(peft_config=LoraConfig(r=2, target_modules=targets))


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
    ],
)
def test_settings_are_refused_when_they_are_made(settings, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        TARSGRPOConfig("out", report_to=[], **settings)
