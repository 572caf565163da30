"""Completions: drawn as the trainer draws them, each row under its own clip, shown as they come."""

import pytest
import torch
from transformers import TextStreamer

from tars_trl.models import architecture_of
from tars_trl.models.loading import load_speech_llm
from tars_trl.models.prompting import twin_prompt
from tars_trl.sampling.complete import complete, decoding
from tars_trl.settings import DecodingSettings
from tests.conftest import question, questions


@pytest.mark.parametrize("narrow", [{"top_p": 1e-4}, {"min_p": 0.99}, {"top_k": 1}, {"typical_p": 1e-4}])
def test_samples_are_drawn_from_the_full_distribution(tiny, monkeypatch, narrow):
    """Whatever the checkpoint's generation_config says; each of these alone would leave one token to choose."""
    model, processor = tiny
    for name, value in narrow.items():
        monkeypatch.setattr(model.generation_config, name, value)
    settings = {"max_completion_length": 6, "num_samples": 8, "batch_size": 1}
    alone = complete(model, processor, [question(0)], "text", do_sample=True, **{"top_k": 0, **narrow}, **settings)
    assert len({done.text for done in alone}) == 1
    told = decoding(DecodingSettings(temperature=1.0, max_completion_length=6))
    drawn = complete(model, processor, [question(0)], "text", num_samples=8, batch_size=1, **told)
    assert len({done.text for done in drawn}) > 4


def test_greedy_settings_decode_greedily(model_folder):
    model, processor = load_speech_llm(model_folder)
    told = decoding(DecodingSettings(max_completion_length=5))
    assert "do_sample" not in told and "temperature" not in told
    rows = list(questions(2))
    assert list(complete(model, processor, rows, "speech", **told)) == list(
        complete(model, processor, rows, "speech", max_completion_length=5, do_sample=False)
    )


@pytest.mark.parametrize("how", [{"num_samples": 3, "do_sample": True, "top_k": 1}, {"num_beams": 2}])
def test_every_copy_of_a_row_hears_its_own_clip(model_folder, how):
    """Samples and beams repeat the rows: completions equal those of the question asked alone."""
    model, processor = load_speech_llm(model_folder)
    rows, samples = list(questions(3)), how.get("num_samples", 1)
    together = list(complete(model, processor, rows, "speech", max_completion_length=6, **how))
    assert len({done.text for done in together}) > 1
    for number, row in enumerate(rows):
        alone = list(complete(model, processor, [row], "speech", max_completion_length=6, **how))
        assert together[number * samples : (number + 1) * samples] == alone


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_the_samples_of_a_question_share_its_prompt(model_folder, modality):
    """As preference pairs and scores ask: each prompt goes through the decoder once, counted by a hook on a layer."""
    model, processor = load_speech_llm(model_folder)
    tokens = []
    model.get_decoder().layers[0].register_forward_hook(
        lambda _module, args, _output: tokens.append(args[0].size(0) * args[0].size(1))
    )
    rows = [question(number) for number in range(2)]
    completions = list(
        complete(model, processor, rows, modality, max_completion_length=6, num_samples=4, do_sample=True)
    )
    architecture = architecture_of(model.config.model_type)
    prompts = [len(twin_prompt(architecture, processor, row, modality).ids) for row in rows]
    assert len(completions) == 8
    assert sum(tokens) <= 1.15 * (sum(prompts) + 8 * 6)


def test_the_completion_is_shown_as_it_comes_and_is_the_same(model_folder, capsys):
    model, processor = load_speech_llm(model_folder)
    (plain,) = complete(model, processor, [question(1)], "speech", max_completion_length=6)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    (shown,) = complete(model, processor, [question(1)], "speech", max_completion_length=6, streamer=streamer)
    assert shown == plain and capsys.readouterr().out.strip() == plain.text.strip()


def test_the_model_and_the_random_state_are_left_alone(tiny):
    model, processor = tiny
    model.train()
    model.model.language_model.layers[0].eval()
    state = torch.get_rng_state()
    (done,) = complete(model, processor, [question(0)], "text", max_completion_length=4, do_sample=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.model.language_model.layers[0].training
    assert len(done.ids) == done.tokens and processor.tokenizer.decode(done.ids, skip_special_tokens=True) == done.text
