"""What a real vLLM on a CPU (tests/engine) cannot show, against a stand-in: engines that are wrong, or that sleep."""

import copy

import pytest
import torch
from trl.generation import vllm_generation

from tars_trl.grpo import preparing
from tars_trl.grpo.vllm import SpeechGeneration
from tars_trl.models.prompting import heard
from tests.grpo.vllm_stand_in import Engine, SamplingParams, make_llm
from tests.test_trainer import rollout


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Whether a vLLM is there is looked for first of all."""
    monkeypatch.setattr(preparing, "vllm_version", lambda asked: "0.22.1")


@pytest.fixture
def engine(tiny):
    """An engine with weights of its own: it answers rightly only once the trained ones have been sent."""
    from tiny_omni import tiny_random

    return Engine(tiny_random(1)[0], tiny[1])


@pytest.fixture
def make(make_trainer, tiny, engine, monkeypatch):
    """Build a trainer that samples with `engine`."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # TRL sets them for the engine; set here, they are restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(vllm_generation, "LLM", make_llm(engine), raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    settings = {"use_vllm": True, "vllm_mode": "colocate"}
    # A random model hardly minds which token comes, and would rather repeat the last one: make it mind its prompt.
    sharp = copy.deepcopy(tiny[0])
    sharp.model.language_model.norm.weight.data *= 4
    for layer in sharp.model.language_model.layers:
        layer.self_attn.o_proj.weight.data *= 20
        layer.mlp.down_proj.weight.data *= 20
    settings |= {"lora_dropout": 0.0, "build_model": sharp, "warmup_steps": 0, "learning_rate": 1e-2}
    return lambda **more: make_trainer(**(settings | more))


def difference(trainer, output):
    """Largest difference between the log-probs that the engine reports and those of a bare pass of the model."""
    with torch.no_grad(), heard(trainer._base, output["audio"]):
        logits = trainer.model(
            input_ids=torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
            attention_mask=torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
        ).logits[:, output["prompt_ids"].size(1) - 1 : -1]
    logits[:, :, trainer.vllm_generation.suppressed] = -torch.inf
    scores = logits.log_softmax(-1).gather(2, output["completion_ids"].unsqueeze(2)).squeeze(2)
    return ((scores - output["sampling_per_token_logps"]) * output["completion_mask"]).abs().max().item()


def test_importance_ratio_is_per_token_and_truncated(make, engine):
    """No real engine lies about its log-probs. Of one that makes them e times too small each ratio would be e: is 2."""
    trainer = make(vllm_parity_tolerance=0.0)
    engine.shift = -1.0
    output = rollout(trainer)
    counted = output["completion_mask"].bool()
    ratio = output["importance_sampling_ratio"]
    assert ratio.shape == counted.shape
    torch.testing.assert_close(ratio[counted], torch.full_like(ratio[counted], 2.0))
    engine.shift = -0.25
    output = rollout(trainer)
    ratio = output["importance_sampling_ratio"][output["completion_mask"].bool()]
    found = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).exp().clamp(max=2.0)
    torch.testing.assert_close(ratio, found[output["completion_mask"].bool()])
    assert ratio.min() < 1.99 and ratio.unique().numel() > 8


@pytest.mark.parametrize("fault", ["deaf", "forgetful"])
def test_another_policy_is_noticed_before_the_first_step(make, engine, fault):
    """A real engine cannot be made deaf; weights that it does not get are shown with it, too."""
    trainer = make()
    setattr(engine, fault, True)
    with pytest.raises(ValueError, match="differ before the first step: token .* is .* with vLLM and .* nats apart"):
        rollout(trainer)
    trainer = make(vllm_parity_tolerance=0.0)  # unchecked, it would train on another policy's completions
    assert difference(trainer, rollout(trainer)) > 0.5


def test_other_audio_tokens_are_an_error(make, engine):
    """A processor that makes another number of tokens of a clip is noticed at the prompt; one version has but one."""
    trainer = make(vllm_parity_tolerance=0.0)
    engine.stretch = 1
    with pytest.raises(ValueError, match="vLLM sampled row 0 from another prompt"):
        rollout(trainer)
    generation = SpeechGeneration.__new__(SpeechGeneration)
    generation.audio_token = 9
    features = {"mm_hashes": {}, "mm_placeholders": {"audio": [{"offset": 14, "length": 3}]}}
    placed = generation._place_features(features, [1, 9, 9, 9, 2])  # what a server answers
    assert placed == {**features, "mm_placeholders": {"audio": [{"offset": 1, "length": 3}]}}
    with pytest.raises(ValueError, match="makes .3. audio tokens of a clip that has 2"):
        generation._place_features(features, [1, 9, 9, 2])


def test_an_engine_that_sleeps_during_updates(make):
    """VLLM's sleep mode needs a GPU. Its weights are gone when it wakes: they are sent before it samples."""
    trainer = make(vllm_enable_sleep_mode=True, max_steps=2)
    trainer.train()
    assert difference(trainer, rollout(trainer)) < 1e-5


def test_other_architectures_are_refused(make_trainer):
    """Before an engine is looked for."""
    from tests.models.tiny_phi4 import tiny_random

    with pytest.raises(ValueError, match="use_vllm=True with a phi4_multimodal model"):
        make_trainer(build_model=tiny_random(0)[0], use_vllm=True)
