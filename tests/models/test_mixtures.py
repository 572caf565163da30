"""What is a mixture's own: where LoRA goes, the router, experts if asked for, and how a Qwen3-Omni is exported."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, Qwen3OmniMoeForConditionalGeneration

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer
from tars_trl.data.prompts import spoken_prompt
from tars_trl.errors import SettingError
from tars_trl.models.loading import load_speech_llm
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.models.qwen3_omni import Qwen3OmniThinker
from tars_trl.share.export import write_export
from tests.conftest import odd_reward, question, questions
from tests.models.tiny import qwen3_omni
from tests.trained import checkpoint, logits


@pytest.fixture(scope="module")
def mixture():
    return qwen3_omni(0)


def trainer_of(mixture, tmp_path, peft_config=None, **settings):
    model, processor = mixture
    config = TARSGRPOConfig(
        str(tmp_path), reference_reward="odd_reward", behavior_weight=0, bf16=False, use_cpu=True, report_to=[],
        mask_truncated_completions=False, max_steps=2, logging_steps=1, max_completion_length=8, learning_rate=1e-2,
        save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    return TARSGRPOTrainer(
        copy.deepcopy(model), [odd_reward], config, questions(), processing_class=processor, peft_config=peft_config
    )


def adapted(trainer):
    return {name for name, module in trainer._base.named_modules() if getattr(module, "lora_A", None)}


def test_lora_is_on_attention(mixture, tmp_path):
    names = adapted(trainer_of(mixture, tmp_path))
    linears = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    assert names == {f"model.language_model.layers.{n}.{linear}" for n in range(3) for linear in linears}


def test_lora_on_experts_if_asked_for(mixture, tmp_path):
    """They are there, and are trained; merged, they give the trained model."""
    trainer = trainer_of(mixture, tmp_path, lora_experts=True, lora_dropout=0.0)
    assert {name for name in adapted(trainer) if name.endswith("mlp.experts")} == {
        f"model.language_model.layers.{n}.mlp.experts" for n in range(3)
    }
    trainer.train()
    trained = logits(trainer.model.eval())
    experts = {n: p for n, p in trainer.model.named_parameters() if "experts" in n and "lora_B" in n}
    assert experts and all(parameter.abs().max() > 0 for parameter in experts.values())
    trainer.save_model(str(tmp_path / "run"))
    mixture[0].save_pretrained(tmp_path / "base")
    mixture[1].save_pretrained(tmp_path / "base")
    model, processor = load_speech_llm(str(tmp_path / "base"), str(tmp_path / "run"))
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=1e-5)
    write_export(model, processor, tmp_path / "out", "merged")
    torch.testing.assert_close(logits(load_speech_llm(str(tmp_path / "out"))[0]), trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_experts": True}, "lora_experts=True with lora_dropout=0.05"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef=0.1: the router of a mixture stays"),
        ({"peft_config": LoraConfig(target_modules=["q_proj"])}, "4 of 10 trainable parameters are on the audio"),
        (
            {"peft_config": LoraConfig(target_modules=["q_proj", "gate"], exclude_modules=r".*(audio_tower|visual).*")},
            "on the router, such as model.language_model.layers.0.mlp.gate",
        ),
        (
            {"peft_config": Qwen3OmniThinker().lora(r=2), "lora_experts": True, "lora_dropout": 0.0},
            "none of 12 LoRA adapters is on an expert",
        ),
    ],
)
def test_what_cannot_work_is_refused(mixture, tmp_path, settings, message):
    with pytest.raises(SettingError, match=message):
        trainer_of(mixture, tmp_path, **settings)


def test_experts_of_a_dense_model_are_refused(tiny, tmp_path):
    with pytest.raises(SettingError, match="only a mixture has experts"):
        trainer_of(tiny, tmp_path, lora_experts=True, lora_dropout=0.0)


def test_native_encoder_is_still_not_padding_safe(mixture):
    """Why a clip under a second has a pass of its own. When this fails, `Qwen3OmniThinker.encode` can go."""
    model, processor = mixture
    clips = [
        Qwen3OmniThinker()
        .prompt(processor, spoken_prompt(question(0)["prompt"]), torch.randn(samples).numpy())
        .features
        for samples in (8000, 24_000)
    ]
    together = Qwen2_5OmniThinker.encode(Qwen3OmniThinker(), model, clips)[0]
    alone = Qwen2_5OmniThinker.encode(Qwen3OmniThinker(), model, clips[:1])[0]
    assert (together - alone).abs().max() > 1e-3  # measured: 5e-3 of 0.7; equal passes agree to 1e-6


def test_a_thinker_alone_becomes_an_omni(mixture, tmp_path):
    """In the hub's names, experts one by one; the whole class opens it and finds the trained thinker."""
    model, processor = load_speech_llm(str(checkpoint(*mixture, tmp_path)))
    expected = logits(model)
    write_export(model, processor, tmp_path / "out", "omni", original=str(tmp_path / "base"))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == "qwen3_omni_moe" and config.architectures == ["Qwen3OmniMoeForConditionalGeneration"]
    torch.testing.assert_close(logits(load_speech_llm(str(tmp_path / "out"))[0]), expected, rtol=0, atol=1e-5)
    whole = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(whole.thinker), expected, rtol=0, atol=1e-5)
    # And back into a whole one.
    write_export(model, processor, tmp_path / "again", "omni", original=str(tmp_path / "out"))
    torch.testing.assert_close(logits(load_speech_llm(str(tmp_path / "again"))[0]), expected, rtol=0, atol=1e-5)
