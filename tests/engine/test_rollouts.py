"""Rollouts by a real vLLM: what it samples, from which weights, with which probabilities; runs that end and go on."""

import pytest
import torch

from tars_trl import load_questions
from tars_trl.data.prompts import MODALITIES
from tars_trl.errors import EngineError
from tars_trl.models.hooks import StatePooler
from tars_trl.models.prompting import end_tokens_of, twin_prompt
from tars_trl.sampling.complete import complete
from tests.engine.conftest import LENGTH, QUESTIONS
from tests.test_trainer import rollout


def compare_greedy(trainer, rows, modality, length=LENGTH):
    """Greedy completions (token ids) of vLLM and of transformers, the trained model's, for the same rows."""
    prompts = [twin_prompt(trainer.architecture, trainer.processing_class, row, modality) for row in rows]
    clips = [None if prompt.waveform is None else [(prompt.waveform, 16_000)] for prompt in prompts]
    ours = trainer.vllm_generation.greedy([prompt.ids for prompt in prompts], clips, length)
    options = {"batch_size": len(rows), "max_completion_length": length}
    theirs = complete(trainer.model, trainer.processing_class, rows, modality, **options)
    return [list(ids) for ids in ours], [list(done.ids) for done in theirs]


def log_ratio(output):
    """Our log-prob minus vLLM's of each sampled token, (tokens,)."""
    return (output["old_per_token_logps"] - output["sampling_per_token_logps"])[output["completion_mask"].bool()]


@pytest.mark.parametrize("modality", MODALITIES)
def test_greedy_completions_are_those_of_transformers(make, asked, modality):
    """Prompts (refused if they differ), tokens and where they end; the weights are sent to an engine without any."""
    trainer = make()
    trainer.vllm_generation.sync_weights()
    ours, theirs = compare_greedy(trainer, list(asked.select(range(48))), modality)
    assert ours == theirs
    ends = set(end_tokens_of(trainer._base, trainer.processing_class))
    assert len(set(map(tuple, ours))) > 5 and all(ids[-1] in ends and not ends & set(ids[:-1]) for ids in ours)


@pytest.mark.parametrize(
    # Seen on 48 completions: 5e-7 and 7e-6 in float32, 2e-4 and 0.4 (one token of 1812) in bfloat16.
    ("dtype", "mean", "most"),
    [("float32", 1e-3, 1e-4), ("bfloat16", 2e-3, 1.0)],
)
def test_sampled_log_probs_are_ours(make, dtype, mean, most):
    """Before the first update; of what vLLM says it sampled with, and of what the same weights say here."""
    trainer = make(dtype=dtype, per_device_train_batch_size=48)
    difference = log_ratio(rollout(trainer, range(6)))
    assert abs(difference.exp().mean() - 1) < mean and difference.abs().max() < most
    assert difference.abs().max() > 0  # two implementations


def test_placeholders_are_never_sampled(make):
    """Although the model, whose placeholders are made as likely as its favourite tokens, would like to."""
    trainer = make(per_device_train_batch_size=48)
    generation, embedding = trainer.vllm_generation, trainer._base.get_input_embeddings().weight  # tied to the head
    favourites = rollout(trainer, range(6))["completion_ids"].flatten().bincount().topk(2).indices
    placeholders = torch.tensor(trainer.architecture.unsampled_tokens(trainer._base))
    embedding.data[placeholders[:2]] = embedding.data[favourites]
    generation.parity_checked, trainer._last_loaded_step = True, -1
    assert not torch.isin(rollout(trainer, range(6))["completion_ids"], placeholders).any()
    generation.generation_kwargs["logit_bias"] = {}
    with torch.no_grad():
        prompts = [prompt.ids for prompt in trainer._rollout.prompts[4:8]]
    sampled = torch.tensor(sum(generation.generate(prompts, None, 4)[1], []))
    assert torch.isin(sampled, placeholders).any()


@pytest.mark.parametrize("synced", [True, False])
def test_weights_arrive(make, monkeypatch, synced):
    """After 1, 5 and 20 large steps vLLM's greedy tokens are the trained model's; never, if they are not sent."""
    rows = load_questions(QUESTIONS, "train")
    trainer = make(rows, max_steps=21, learning_rate=5e-3)
    before = {name: weight.clone() for name, weight in trainer._base.named_parameters() if "base_layer" in name}
    generate, equal, moved = trainer._generate_and_score_completions, {}, []

    def watch(inputs):
        output = generate(inputs)  # which syncs
        if trainer.state.global_step in (1, 5, 20):
            pairs = [compare_greedy(trainer, list(rows.select(range(6))), modality, 24) for modality in MODALITIES]
            equal[trainer.state.global_step] = sum(a == b for pair in pairs for a, b in zip(*pair, strict=True))
            moved.append(pairs[0][1])
        if not synced:
            monkeypatch.setattr(trainer.vllm_generation, "sync_weights", lambda: None)
        return output

    monkeypatch.setattr(trainer, "_generate_and_score_completions", watch)
    trainer.train()
    print(synced, equal)
    assert moved[0] != moved[1] != moved[2]
    assert set(equal) == {1, 5, 20} and {count == 12 for count in equal.values()} == {synced}
    assert all(torch.equal(weight, before[name]) for name, weight in trainer._base.named_parameters() if name in before)


@pytest.mark.parametrize(("length", "correction"), [(16, True), (LENGTH, True), (LENGTH, False)])
def test_states_are_those_of_sampling_here(make, monkeypatch, length, correction):
    """Of the same tokens (the likeliest ones), R_rep's states from the scoring pass are those pooled while sampling.

    Both leave the last token out, be it the end or merely the last one of a truncated completion (all 16 tokens long).
    The pass is that of the old log-probs, or one more where there is none.
    """
    settings = {"top_k": 1, "max_completion_length": length, "vllm_importance_sampling_correction": correction}
    pooled = []
    original = StatePooler.pooled
    monkeypatch.setattr(StatePooler, "pooled", lambda *args: pooled.append(original(*args)) or pooled[-1])
    trainers = [make(output=name, use_vllm=name == "with", **settings) for name in ("with", "without")]
    first, second = (rollout(trainer, (3,))["completion_ids"] for trainer in trainers)
    assert torch.equal(first, second)
    assert (length == 16) != torch.isin(first, torch.tensor(trainers[0].eos_token_ids)).any()
    torch.testing.assert_close(*pooled, rtol=0, atol=1e-4)
    assert pooled[0].abs().max() > 0.1


def test_parity_is_checked_once(make, monkeypatch):
    trainer = make(vllm_parity_tolerance=1e-3)
    llm, asked = trainer.vllm_generation.llm, []
    generate = llm.generate
    monkeypatch.setattr(
        llm,
        "generate",
        lambda prompts, *args, **kwargs: asked.append(len(prompts)) or generate(prompts, *args, **kwargs),
    )
    rollout(trainer)
    once = sum(asked)
    rollout(trainer)
    assert len(asked) == 3 and sum(asked) < 2 * once


def test_a_teacher_reads_what_vllm_sampled(make):
    trainer = make(max_steps=1, distillation_weight=1.0)
    trainer.train()
    assert trainer._rollout.pooler is not None and "distillation/kl" in trainer.state.log_history[0]
    output = rollout(trainer)
    said, spoken = output["teacher_logps"], output["spoken"]
    assert (said[spoken] < 0).any() and not said[~spoken].any()


def test_draws_follow_the_seed(make):
    """The engine has a seed of its own, the same in every run: what is sampled follows the run's all the same."""
    drawn = [rollout(make(output=str(n), seed=seed))["completion_ids"].tolist() for n, seed in enumerate((0, 0, 1))]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_resumed_run_is_the_uninterrupted_one(make):
    """An engine in this process draws from the generator that checkpoints hold: weights are equal to the last bit."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    whole = make(output="whole", **settings)
    whole.train()
    half = make(output="half", **settings)
    assert any(log.get("grad_norm", 0) > 0 for log in whole.state.log_history)
    half.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    for (name, one), other in zip(half.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_an_engine_that_fails_ends_the_run(make, monkeypatch):
    """With what to do in the error, its cause behind it, and a checkpoint from which the run goes on."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "max_completion_length": 16}
    trainer = make(**settings)
    answer = trainer.vllm_generation.llm.generate

    def die(*args, **kwargs):
        if trainer.state.global_step == 2:
            raise RuntimeError("the device was lost")
        return answer(*args, **kwargs)

    monkeypatch.setattr(trainer.vllm_generation.llm, "generate", die)
    with pytest.raises(EngineError, match="checkpoint-2") as error:
        trainer.train()
    assert "the device was lost" in repr(error.value.__cause__)
