"""The contract with vLLM, kept against a stand-in that enforces its schema: audio, weights, prompts, parity, pooling.

vLLM itself does not run here. What the stand-in computes comes from transformers' forward pass on what it was sent, so
log-probs that agree with the trainer's mean that audio, positions and weights arrived.
"""

import copy

import pytest
import torch
from trl.generation import vllm_client, vllm_generation
from trl.generation.vllm_client import VLLMClient

from tars_trl.models.hooks import StatePooler
from tars_trl.models.prompting import heard
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tests.grpo.vllm_stand_in import Engine, SamplingParams, make_llm, served, stored_names
from tests.test_trainer import rollout


@pytest.fixture
def engine(tiny):
    """An engine with weights of its own: it answers rightly only once the trained ones have been sent."""
    from tiny_omni import tiny_random

    return Engine(tiny_random(1)[0], tiny[1])


@pytest.fixture(params=["colocate", "server"])
def mode(request):
    return request.param


@pytest.fixture
def make(make_trainer, tiny, engine, mode, monkeypatch):
    """Build a trainer that samples with `engine`, inside the process or behind a server."""
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "",
        "MASTER_PORT": "",
    }.items():
        monkeypatch.setenv(name, value)  # TRL sets them for the engine; set here, they are restored
        monkeypatch.delenv(name)
    for module in (vllm_generation, vllm_client):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(vllm_generation, "LLM", make_llm(engine), raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    # Weights go to a server through NCCL, which needs a GPU: here they are handed over.
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: None)

    def update(self, metadata, parameters):
        described = []
        for name, parameter in parameters:  # one at a time: merged weights are there only while they are walked
            described.append((name, str(parameter.dtype).removeprefix("torch."), list(parameter.shape)))
            engine.load_weights([(name, parameter)])
        assert described == metadata

    monkeypatch.setattr(VLLMClient, "update_named_params", update)
    with served(engine) as address:
        settings = {"use_vllm": True, "vllm_mode": mode, "vllm_server_base_url": address, "vllm_server_timeout": 5.0}
        # A random model hardly minds which token comes, and would rather repeat the last one: make it mind its prompt.
        sharp = copy.deepcopy(tiny[0])
        sharp.model.language_model.norm.weight.data *= 4
        for layer in sharp.model.language_model.layers:
            layer.self_attn.o_proj.weight.data *= 20
            layer.mlp.down_proj.weight.data *= 20
        settings |= {"lora_dropout": 0.0, "build_model": sharp, "warmup_steps": 0, "learning_rate": 1e-2}
        yield lambda **more: make_trainer(**(settings | more))


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


def test_names_are_those_of_the_whole_checkpoint(tiny):
    """`thinker.` and the name that transformers itself stores a parameter under."""
    stored = {name: key for key, name in stored_names(copy.deepcopy(tiny[0])).items()}
    names = {name: Qwen2_5OmniThinker().vllm_parameter(name) for name, _ in tiny[0].named_parameters()}
    assert names == {name: f"thinker.{key}" for name, key in stored.items()}
    assert {name.split(".")[1] for name in names.values()} == {"model", "audio_tower", "visual"}
    head = Qwen2_5OmniThinker().vllm_parameter("lm_head.weight")
    assert head == "thinker.lm_head.weight"  # tied in the tiny model, not in 7B


def test_both_twins_are_sampled_from_the_trained_policy(make, engine):
    """Before and after updates vLLM's log-probs are the trainer's: clips, prompts and weights arrived."""
    trainer = make(max_steps=2)
    weight = trainer.model.get_base_model().model.language_model.layers[0].self_attn.q_proj.base_layer.weight
    before, sent = weight.clone(), engine.model.model.language_model.layers[0].self_attn.q_proj.weight
    assert difference(trainer, rollout(trainer)) < 1e-5  # 1e-6 was seen; 1.7 and 3.1 with the faults below
    trainer.train()
    assert any(log.get("grad_norm", 0) > 0 for log in trainer.state.log_history)
    assert (sent - before).abs().max() > 1e-3
    assert difference(trainer, rollout(trainer)) < 1e-5
    torch.testing.assert_close(weight, before, rtol=0, atol=1e-6)  # the adapter is taken out again after each sync
    assert engine.loaded == {Qwen2_5OmniThinker().vllm_parameter(name) for name, _ in engine.model.named_parameters()}


def test_adapter_is_merged_into_what_is_sent(make, engine):
    """After an update the engine's weights are base plus adapter: they moved, and the trained model's base did not."""
    trainer = make(max_steps=2)
    trainer.train()
    trainer.vllm_generation.sync_weights()
    layer = trainer.model.get_base_model().model.language_model.layers[0].self_attn.q_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    sent = engine.model.model.language_model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(sent, merged, rtol=0, atol=1e-6)
    assert (sent - layer.base_layer.weight).abs().max() > 1e-3


def test_what_is_sent(make, engine, mode):
    """One placeholder and the waveform, or our tokens and the server's features; placeholders are never sampled."""
    trainer = make()
    output = rollout(trainer)
    token = engine.audio_token
    if mode == "colocate":
        sent = engine.received[-8:]
        for row, prompt in zip(sent, trainer._rollout.prompts, strict=True):
            spoken = prompt.features is not None
            assert row["prompt_token_ids"].count(token) == spoken and bool(row.get("multi_modal_data")) == spoken
    else:
        spoken, written = engine.received[-2:] if engine.received[-2]["features"] else engine.received[:-3:-1]
        assert (
            spoken["token_ids"] == trainer._rollout.prompts[0].ids
            and written["token_ids"] == trainer._rollout.prompts[-1].ids
        )
        assert written["features"] is None and spoken["sampling_params"]["n"] == 4
        assert set(spoken["sampling_params"]["stop_token_ids"]) == set(trainer.eos_token_ids)
    placeholders = torch.tensor(trainer.architecture.unsampled_tokens(trainer._base))
    assert not torch.isin(output["completion_ids"], placeholders).any()
    assert output["sampling_per_token_logps"].shape == output["completion_ids"].shape


def test_importance_ratio_is_per_token_and_truncated(make, engine):
    """An engine whose log-probs are e times too small: every ratio would be e, and is 2."""
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
    trainer = make()
    setattr(engine, fault, True)
    with pytest.raises(ValueError, match="differ before the first step: token .* is .* with vLLM and .* nats apart"):
        rollout(trainer)
    trainer = make(vllm_parity_tolerance=0.0)  # unchecked, it would train on another policy's completions
    assert difference(trainer, rollout(trainer)) > 0.5


def test_parity_passes_and_is_asked_once(make, engine):
    trainer = make(vllm_parity_tolerance=1e-3)
    rollout(trainer)
    once = len(engine.received)
    rollout(trainer)
    assert len(engine.received) < 2 * once
    assert trainer.vllm_generation.temperature == 1.0 and trainer.vllm_generation.max_completion_length == 8


def test_other_audio_tokens_are_an_error(make, engine):
    """A processor that makes another number of tokens of a clip is noticed at the prompt, not in the losses."""
    trainer = make(vllm_parity_tolerance=0.0)
    engine.stretch = 1
    with pytest.raises(ValueError, match="vLLM sampled row 0 from another prompt|makes .* audio tokens of a clip"):
        rollout(trainer)


@pytest.mark.parametrize("mode", ["colocate"], indirect=True)
def test_expanded_prompts_would_be_expanded_twice(make, engine):
    """Negative control of the stand-in: TRL's own way of sending prompts does not get through."""
    trainer = make(vllm_parity_tolerance=0.0)
    trainer.vllm_generation._unexpanded = lambda ids: ids
    with pytest.raises(ValueError, match="from another prompt"):
        rollout(trainer)


@pytest.mark.parametrize("mode", ["colocate"], indirect=True)
@pytest.mark.parametrize("correction", [True, False])
def test_states_are_pooled_from_one_pass(make, monkeypatch, correction):
    """R_rep's states are means over all completion tokens but the last, of a pass that runs anyway or of one more."""
    trainer = make(vllm_importance_sampling_correction=correction, vllm_parity_tolerance=0.0)
    trainer._sharing.checked = True  # which takes two passes once
    passes, kept = [], []
    layer = trainer._layers[0]
    layer.register_forward_hook(lambda *_: passes.append(1))
    original = StatePooler.pooled
    monkeypatch.setattr(StatePooler, "pooled", lambda *args: kept.append(original(*args)) or kept[-1])
    output = rollout(trainer)
    assert len(passes) == 1
    with torch.no_grad(), heard(trainer._base, output["audio"]):
        result = trainer._base(
            input_ids=torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
            attention_mask=torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
            output_hidden_states=True,
        )
    states = torch.stack(result.hidden_states[1:], 1)[:, :, output["prompt_ids"].size(1) :]
    for row, mask in enumerate(output["completion_mask"]):
        length = int(mask.sum()) - 1
        torch.testing.assert_close(kept[0][row], states[row, :, :length].mean(1), rtol=0, atol=1e-4)
    assert (states[0, :, 0] - kept[0][0]).abs().max() > 1e-2


@pytest.mark.parametrize("mode", ["colocate"], indirect=True)
@pytest.mark.parametrize("settings", [{"modalities": "text", "num_generations": 4}, {"vllm_enable_sleep_mode": True}])
def test_other_runs(make, settings):
    """Written questions alone; an engine that sleeps during updates."""
    trainer = make(**settings)
    trainer.train()
    assert difference(trainer, rollout(trainer)) < 1e-5


def test_other_architectures_are_refused(make_trainer):
    from tests.models.tiny_phi4 import tiny_random

    with pytest.raises(ValueError, match="use_vllm=True with a phi4_multimodal model"):
        make_trainer(build_model=tiny_random(0)[0], use_vllm=True)
