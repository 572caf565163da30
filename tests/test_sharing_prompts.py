"""Training with shared prompts is training without: the same logs and weights, in fewer tokens."""

import copy

import pytest
import torch

from tars_trl.grpo import sharing
from tars_trl.models import shared_prefix
from tars_trl.models.shared_prefix import ATTENTION, packed_logps
from tests.models.test_speech_llms import ARCHITECTURES

SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 3, "lora_dropout": 0.0}
# Plain steps: Adam divides by the root of squares, which makes a visible step of the noise in a gradient of nothing.
PLAIN_STEPS = {"optim": "sgd", "learning_rate": 0.1}


KINDS = {
    "LoRA": {},
    "whole": {"lora_r": 0},
    "encoders, too": {"lora_r": 0, "freeze_audio": False},
    "checkpointing": {"gradient_checkpointing": True},
    "old log-probs": {"num_iterations": 2},
    "truncated ones masked": {"mask_truncated_completions": True},
}


def counted_tokens(trainer):
    """Tokens through the first decoder layer, filled while the trainer runs."""
    tokens = []
    layer = trainer._base.get_decoder().layers[0]
    layer.register_forward_hook(lambda _module, args, _output: tokens.append(args[0].size(0) * args[0].size(1)))
    return tokens


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_training_is_the_same(make_trainer, kind):
    """Three steps of four micro-batches: losses, metrics and weights, whichever rows a micro-batch holds."""
    results = {}
    for wanted in ("auto", "never"):
        trainer = make_trainer(**SETTINGS, **PLAIN_STEPS, **kind, shared_prefix=wanted, output=wanted)
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        tokens = counted_tokens(trainer)
        trainer.train()
        assert trainer._sharing.on == (wanted == "auto")
        results[wanted] = trainer.state.log_history, dict(trainer.model.named_parameters()), sum(tokens)
    (shared_logs, shared, shared_tokens), (logs, plain, tokens) = results.values()
    for one, other in zip(shared_logs[:-1], logs[:-1], strict=True):
        assert one.keys() == other.keys()  # a step on rows that an earlier one has sampled logs no rewards
        for name in {"loss", "grad_norm", "entropy", "speech/accuracy", "text/accuracy", "completions/mean_length",
                     "rewards/representation_alignment/mean"} & one.keys():  # fmt: skip
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
    changes = {name: float((weight - before[name]).norm()) for name, weight in plain.items()}
    assert max(changes.values()) > 1e-3
    for name, weight in plain.items():
        assert float((shared[name] - weight).norm()) <= 1e-3 * changes[name] + 1e-7, name
    assert tokens > 1.3 * shared_tokens  # the check of the first batch, sampling and all included


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_token_twice(make_trainer, architecture):
    """A step takes at most 1.15 times the tokens that differ in it: in sampling, and again in the update."""
    model, processor = ARCHITECTURES[architecture](0)
    settings = {**SETTINGS, "max_steps": 1, "build_model": model, "processing_class": processor}
    trainer = make_trainer(**settings)
    trainer._sharing.checked = {"policy", "teacher"}
    tokens, distinct = counted_tokens(trainer), []
    scored = trainer._compute_loss

    def compute_loss(model, inputs):
        rows = zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
        prompts = {tuple(ids[mask.bool()].tolist()) for ids, mask in rows}
        distinct.append(sum(map(len, prompts)) + int(inputs["completion_mask"].sum()))
        return scored(model, inputs)

    trainer._compute_loss = compute_loss
    trainer.train()
    assert len(distinct) == 4
    assert sum(tokens) <= 1.15 * 2 * sum(distinct)


def test_rows_are_compared_once_a_micro_batch(make_trainer, monkeypatch):
    """Which rows share a prompt is found out once and handed down: on a GPU each comparison waits for the device."""
    compared, compare = [], shared_prefix.first_with_same_prompt

    def counting(*args):
        compared.append(1)
        return compare(*args)

    for module in (sharing, shared_prefix):
        monkeypatch.setattr(module, "first_with_same_prompt", counting)
    trainer = make_trainer(**{**SETTINGS, "max_steps": 1})
    trainer._sharing.checked = {"policy", "teacher"}
    trainer.train()
    assert len(compared) == SETTINGS["gradient_accumulation_steps"]


def test_a_wrong_result_is_noticed(make_trainer, monkeypatch, caplog):
    """Where sharing would give other log-probs, rows keep their prompts, and it is said once."""
    expected = make_trainer(**SETTINGS, shared_prefix="never", output="never")
    expected.train()

    def wrong(model, input_ids, attention_mask, width, *args):
        return packed_logps(model, input_ids.flip(0), attention_mask, width, *args)

    monkeypatch.setattr("tars_trl.grpo.sharing.packed_logps", wrong)
    trainer = make_trainer(**SETTINGS, modalities="text")
    trainer.train()
    assert not trainer._sharing.on
    assert [record.message for record in caplog.records if "nats apart" in record.message][0].startswith("Prompts are")
    assert sum("nats apart" in record.message for record in caplog.records) == 1


def test_other_attention_goes_without(make_trainer, tiny, caplog):
    model = copy.deepcopy(tiny[0])
    model.config.text_config._attn_implementation = {"": "eager"}
    trainer = make_trainer(build_model=model, max_steps=1)
    trainer.train()
    assert not trainer._sharing.on and "'eager'" in caplog.text
    assert trainer._base.config.text_config._attn_implementation == "eager"


def test_little_to_share_goes_without(make_trainer, monkeypatch):
    """With a batch in which a prompt is shared by few, a plain pass is as fast."""
    monkeypatch.setattr(sharing, "LEAST_SAVING", 100.0)
    trainer = make_trainer(max_steps=1)
    tokens = counted_tokens(trainer)
    trainer.train()
    assert trainer._sharing.on and max(tokens) > 8 * 30
    assert trainer._base.config.text_config._attn_implementation == ATTENTION


def test_evaluation_shares_too(make_trainer):
    from tests.conftest import questions

    results = []
    for wanted in ("auto", "never"):
        trainer = make_trainer(shared_prefix=wanted, output=wanted, eval_dataset=questions(2),
                               per_device_eval_batch_size=8, num_generations_eval=4)  # fmt: skip
        torch.manual_seed(0)
        results.append(trainer.evaluate())
    for name, value in results[1].items():
        if isinstance(value, float) and "runtime" not in name and "per_second" not in name and "time" not in name:
            assert results[0][name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name
