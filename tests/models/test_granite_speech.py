"""What is Granite Speech's own: logits that transformers forgets to scale, batch normalisation, its LoRA."""

import copy

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from tars_trl.data.prompts import spoken_prompt
from tars_trl.errors import SettingError
from tars_trl.models.granite_speech import GraniteSpeech
from tests.conftest import question
from tests.models.tiny import granite_speech


@pytest.fixture
def tiny_granite():
    return granite_speech(0, prepared=False)


def log_probs(model, ids, **options):
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


def test_sampled_is_what_is_scored(tiny_granite):
    """The class's logits, once prepared, are those that TRL scores with; the untouched class's are others.

    When the last line fails, transformers divides by itself and `GraniteSpeech.prepare` need not.
    """
    model, _ = tiny_granite
    ids = torch.arange(40, 60).unsqueeze(0)
    untouched = log_probs(model, ids).logits
    GraniteSpeech().prepare(model)
    GraniteSpeech().prepare(model)  # twice is once
    logits = log_probs(model, ids).logits
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    add_fused_lm_head(model)
    scored = log_probs(model, ids, labels=ids, fused_lm_head=True).log_probs
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(untouched, 8 * logits, rtol=1e-5, atol=1e-5)


def test_tower_does_not_learn_from_what_it_hears(tiny_granite):
    model, processor = tiny_granite
    prompt = GraniteSpeech().prompt(processor, spoken_prompt(question(0)["prompt"]), torch.randn(16_000).numpy())
    (expected,) = GraniteSpeech().encode(model, [prompt.features])
    before = copy.deepcopy(model.state_dict())
    model.train()
    (found,) = GraniteSpeech().encode(model, [prompt.features])
    assert torch.equal(found, expected) and model.model.encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_lora_for_audio_alone_is_refused(tiny_granite):
    model, _ = tiny_granite
    model.config.has_lora_adapter = True
    with pytest.raises(SettingError, match="has a LoRA of its own"):
        GraniteSpeech().prepare(model)
