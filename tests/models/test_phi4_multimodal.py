"""What is Phi-4-multimodal's own: its speech LoRA, its prompt format, clips that may not be padded, and a short run."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer
from tars_trl.data.prompts import spoken_prompt, written_prompt
from tars_trl.models import loading, phi4_multimodal
from tars_trl.models.phi4_multimodal import Phi4Multimodal
from tests.conftest import ROOT, odd_reward, question, questions
from tests.models.tiny_phi4 import tiny_random


@pytest.fixture
def tiny_phi4():
    return tiny_random(0)


def waveform(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype("float32")


def with_random_lora(model):
    """A copy of `model` with an adapter as Microsoft's is made: module names that also fit the audio tower."""
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, exclude_modules=r".*embed_tokens_extend.*")
    adapted = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted


def logits(model):
    ids = torch.arange(3, 30).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_speech_lora_is_merged(tiny_phi4, tmp_path):
    """A loaded model gives the logits of base and speech LoRA together, in plain weights, the audio tower untouched."""
    model, _ = tiny_phi4
    adapted = with_random_lora(model)
    model.save_pretrained(tmp_path)
    adapted.save_pretrained(tmp_path / "speech-lora")
    loaded = Phi4Multimodal().load(str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=0, atol=1e-5)  # measured: 1.1e-6
    assert (logits(loaded) - logits(model)).abs().max() > 1e-2
    assert loaded.state_dict().keys() == model.state_dict().keys() and not hasattr(loaded, "peft_config")
    for name, tensor in model.state_dict().items():
        decoder = any(part in name for part in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))
        changed = decoder and "embed_tokens_extend" not in name
        assert torch.equal(loaded.state_dict()[name], tensor) != changed, name


def test_speech_lora_that_does_not_fit_is_refused(tiny_phi4, tmp_path):
    model, _ = tiny_phi4
    model.save_pretrained(tmp_path)
    with_random_lora(model).save_pretrained(tmp_path / "speech-lora")
    file = tmp_path / "speech-lora" / "adapter_model.safetensors"
    weights = {name.replace("base_model.model.model.", "base_model.model."): t for name, t in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit the model: 24 tensors have no place and 24 places no tensor"):
        Phi4Multimodal().load(str(tmp_path))


def test_merged_checkpoint_is_loaded_as_it_is(tiny_phi4, tmp_path, caplog):
    model, _ = tiny_phi4
    model.save_pretrained(tmp_path)
    loaded = Phi4Multimodal().load(str(tmp_path))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert "no speech-lora folder" in caplog.text


@pytest.mark.parametrize(
    ("model_id", "given", "used"),
    [(phi4_multimodal.MODEL_ID, None, "refs/pr/70"), (phi4_multimodal.MODEL_ID, "v1", "v1"), ("me/mine", None, None)],
)
def test_revision_of_the_native_weights(monkeypatch, model_id, given, used):
    """Microsoft's main revision is remote code; the native one is the default for that repository alone."""
    import transformers

    seen = {}

    def from_pretrained(model_id, **kwargs):
        seen.update(kwargs)
        return tiny_random(0)[0]

    monkeypatch.setattr(transformers.Phi4MultimodalForCausalLM, "from_pretrained", from_pretrained)
    places = []
    monkeypatch.setattr(
        Phi4Multimodal, "_with_speech_lora", lambda self, model, model_id, where: places.append(where) or model
    )
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *args, **kwargs: tiny_random(0)[0].config)
    loading.load_model(model_id, full_precision=True, revision=given)
    assert seen["revision"] == used and places == [{} if used is None else {"revision": used}]


def test_flash_attention_is_for_the_decoder(monkeypatch):
    """The audio tower's relative positions are a mask that flash attention cannot take."""
    import transformers

    seen = []
    loaded = lambda model_id, **kwargs: seen.append(kwargs["attn_implementation"])  # noqa: E731
    monkeypatch.setattr(transformers.Phi4MultimodalForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr(Phi4Multimodal, "_with_speech_lora", lambda *args: None)
    for given in ("flash_attention_2", "eager"):
        Phi4Multimodal().load("me/mine", attn_implementation=given)
    assert seen == [{"": "flash_attention_2", "audio_config": "sdpa", "vision_config": "sdpa"}, "eager"]


def test_half_precision_parameters_with_buffers_in_float32(tiny_phi4):
    """As DeepSpeed and FSDP leave them."""
    model, processor = tiny_phi4
    prompt = Phi4Multimodal().prompt(processor, spoken_prompt(question(0)["prompt"]), waveform(8000))
    (expected,) = Phi4Multimodal().encode(model, [prompt.features])
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    (found,) = Phi4Multimodal().encode(model, [prompt.features])
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), expected, dim=-1).min() > 0.99  # 0.999 was seen


def test_prompt_format(tiny_phi4):
    _, processor = tiny_phi4
    conversation = question(0)["prompt"]
    system, text = (turn["content"][0]["text"] for turn in conversation)
    written = Phi4Multimodal().prompt(processor, written_prompt(conversation), None)
    assert processor.tokenizer.decode(written.ids) == f"<|system|>{system}<|end|><|user|>{text}<|end|><|assistant|>"
    spoken = Phi4Multimodal().prompt(processor, spoken_prompt(conversation), waveform(16_000))
    audio = "<|audio|>" * 13  # 98 frames of 10 ms, eight to a token
    assert processor.tokenizer.decode(spoken.ids) == f"<|system|>{system}<|end|><|user|>{audio}<|end|><|assistant|>"
    assert spoken.features["audio_input_features"].shape == (1, 98, 80)


def test_processor_of_a_checkpoint_gives_the_same_prompt(tiny_phi4, tmp_path):
    """A processor that was saved and loaded has lost its template (transformers 5.23); prompts are the same."""
    _, processor = tiny_phi4
    processor.save_pretrained(tmp_path / "once")
    loaded = AutoProcessor.from_pretrained(tmp_path / "once")
    loaded.save_pretrained(tmp_path / "twice")  # a run's checkpoint
    again = AutoProcessor.from_pretrained(tmp_path / "twice")
    assert type(again) is type(processor)
    conversation = spoken_prompt(question(0)["prompt"])
    expected = Phi4Multimodal().prompt(processor, conversation, waveform(8000)).ids
    assert Phi4Multimodal().prompt(again, conversation, waveform(8000)).ids == expected


def test_template_of_the_original_checkpoint(tiny_phi4):
    """A template that only takes strings gives the same prompt."""
    _, processor = tiny_phi4
    conversation = spoken_prompt(question(0)["prompt"])
    expected = Phi4Multimodal().prompt(processor, conversation, waveform(8000)).ids
    processor.chat_template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    assert Phi4Multimodal().prompt(processor, conversation, waveform(8000)).ids == expected


def test_clips_of_equal_length_share_a_pass(tiny_phi4):
    """Order and values are kept, and no pass holds clips of different length."""
    model, processor = tiny_phi4
    conversation = spoken_prompt(question(0)["prompt"])
    samples = [8000, 12_000, 8000, 12_000, 20_000]
    clips = [
        Phi4Multimodal().prompt(processor, conversation, waveform(length, seed)).features
        for seed, length in enumerate(samples)
    ]
    passes = []
    encoder = model.model.embed_tokens_extend.audio_embed.encoder
    handle = encoder.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[:2]))
    together = Phi4Multimodal().encode(model, clips)
    handle.remove()
    assert passes == [(2, 48), (2, 73), (1, 123)]
    for clip, embeddings in zip(clips, together, strict=True):
        torch.testing.assert_close(Phi4Multimodal().encode(model, [clip])[0], embeddings, rtol=0, atol=1e-5)


def test_native_encoder_is_still_not_padding_safe(tiny_phi4):
    """Why clips are not padded. When this fails, transformers repaired it and `encode` may batch all clips."""
    model, processor = tiny_phi4
    extractor, encoder = processor.audio_processor, model.model.embed_tokens_extend.audio_embed.encoder
    short, long = waveform(16_000, 1), waveform(24_000, 2)
    both = extractor([short, long], sampling_rate=16_000, return_tensors="pt")
    alone = extractor([short], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        padded = encoder(both["audio_input_features"], both["audio_attention_mask"])[0, :13]
        difference = (padded - encoder(alone["audio_input_features"], None)[0]).abs().max()
    assert difference > 1e-2  # measured: 0.2 to 0.4; equal passes agree to 1e-6


@pytest.mark.slow
def test_recipe_trains(tiny_phi4, embedder_folder, tmp_path):
    """The recipe with its own YAML, on a checkpoint with a speech LoRA, as the hub's."""
    model, processor = tiny_phi4
    model.save_pretrained(tmp_path / "model")
    with_random_lora(model).save_pretrained(tmp_path / "model" / "speech-lora")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    questions(4).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    command = [sys.executable, "recipes/tars_phi4_multimodal.py", "--config", "recipes/phi4_multimodal/tars.yaml",
               "--model", tmp_path / "model", "--dataset", tmp_path / "data", "--output_dir", tmp_path / "out",
               "--behavior_model", embedder_folder, "--max_steps", "1", "--per_device_train_batch_size", "8",
               "--gradient_accumulation_steps", "1", "--max_completion_length", "8", "--dtype", "float32",
               "--bf16", "false", "--report_to", "none"]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "language model, LoRA" in done.stdout
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_model_loaded_by_the_user_can_be_trained(tiny_phi4, tmp_path):
    """TRL asks any multimodal config for an image placeholder, which this one keeps elsewhere."""
    model, processor = tiny_phi4
    config = TARSGRPOConfig(
        str(tmp_path), reference_reward="odd_reward", behavior_weight=0, bf16=False, use_cpu=True, report_to=[]
    )
    trainer = TARSGRPOTrainer(model, [odd_reward], config, questions(), processing_class=processor)
    assert trainer.model.config.image_token_id == model.config.vision_config.image_token_id
