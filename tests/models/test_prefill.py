"""Each prompt through the decoder once: the same tokens as `generate` gives, whatever the rows share."""

import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig

from tars_trl.models import architecture_of, prefill
from tars_trl.models.hooks import StatePooler
from tars_trl.models.prompting import base_of, heard, prompt_batch, twin_prompt
from tests.conftest import question
from tests.models.tiny import ARCHITECTURES

END = 5


@pytest.fixture(params=ARCHITECTURES)
def speech_llm(request):
    """(architecture, model, processor): a tiny random model whose completions depend on the prompt."""
    model, processor = ARCHITECTURES[request.param](0)
    for weight in base_of(model).get_decoder().layers.parameters():
        weight.data.mul_(3)
    return architecture_of(request.param), model, processor


def rows(model, processor, counts=(4, 4, 3, 1)):
    """Prompts of twins, spoken and written in turn, each as often as `counts` says: ids, mask and clips."""
    architecture = architecture_of(base_of(model).config.model_type)
    prompts = []
    for number, count in enumerate(counts):
        modality = "text" if number % 2 else "speech"
        prompts += [twin_prompt(architecture, processor, question(number // 2, 0.5 + 0.6 * number), modality)] * count
    batch = prompt_batch(model, prompts, processor.tokenizer.pad_token_id)
    return batch.input_ids, batch.attention_mask, batch.clips


def settings(model, processor, **options):
    suppressed = architecture_of(model.config.model_type).unsampled_tokens(model)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": [END], **options}
    return GenerationConfig(pad_token_id=processor.tokenizer.pad_token_id, suppress_tokens=suppressed, **options)


def ordinary(model, ids, mask, clips, config):
    with heard(model, [clip for clip in clips for _ in range(config.num_return_sequences or 1)]):
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
def test_tokens_are_those_of_generate(speech_llm, sampled, one_pass, lora):
    architecture, model, processor = speech_llm
    batch = rows(model, processor)
    config = settings(model, processor, do_sample=sampled, temperature=1.3 if sampled else None)
    if lora:
        model = get_peft_model(model, architecture.lora(r=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
        model.eval()
    torch.manual_seed(3)
    expected = ordinary(model, *batch, config)
    after = torch.rand(1)
    torch.manual_seed(3)
    found = prefill.generate(model, *batch, generation_config=config, one_pass=one_pass)
    assert torch.equal(found, expected) and torch.equal(torch.rand(1), after)
    width = batch[0].size(1)
    distinct = {tuple(row) for row in found[:, width:].tolist()}
    assert len(distinct) == (len(found) if sampled else 4)  # completions depend on prompts, or this shows nothing


def test_several_completions_of_each_row(speech_llm):
    """`num_return_sequences` repeats rows as `generate` does."""
    _, model, processor = speech_llm
    batch = rows(model, processor, (1, 1, 1))
    config = settings(model, processor, do_sample=True, num_return_sequences=3)
    torch.manual_seed(4)
    expected = ordinary(model, *batch, config)
    torch.manual_seed(4)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config), expected)
    assert config.num_return_sequences == 3


def test_states_are_pooled_as_without(speech_llm):
    """The last token of a prompt, which goes through with the completions, does not count."""
    architecture, model, processor = speech_llm
    batch = rows(model, processor)
    config = settings(model, processor)
    poolers = [StatePooler(architecture.state_modules(model), len(batch[0]), [END]) for _ in range(2)]
    with poolers[0].attached(model.get_input_embeddings()):
        expected = ordinary(model, *batch, config)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config, pooler=poolers[1]), expected)
    assert poolers[1].counts.tolist() == poolers[0].counts.tolist() and poolers[0].counts.max() == 8
    # Sums of eight states in another order of float32 sums: 1.5e-4 of 4.4 was seen (the mixture), 1e-5 elsewhere.
    torch.testing.assert_close(poolers[1].sums, poolers[0].sums, rtol=1e-4, atol=1e-4)


def test_another_batch_before_leaves_no_trace(speech_llm):
    """The thinker keeps the position offsets of the last batch it has seen."""
    _, model, processor = speech_llm
    config = settings(model, processor)
    batch, other = rows(model, processor), rows(model, processor, (2, 1))
    expected = ordinary(model, *batch, config)
    ordinary(model, *other, config)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config), expected)
    assert torch.equal(ordinary(model, *other, config), prefill.generate(model, *other, generation_config=config))


def test_every_prompt_once(speech_llm):
    """Counted by a hook on a layer: each distinct prompt, each row's last token, and what is sampled."""
    _, model, processor = speech_llm
    ids, mask, clips = rows(model, processor)
    seen = []
    handle = base_of(model).get_decoder().layers[0].register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    prefill.generate(model, ids, mask, clips, generation_config=settings(model, processor, min_new_tokens=9))
    handle.remove()
    tokens = sum(states.size(0) * states.size(1) for states in seen)
    lengths = mask.sum(1)[[0, 4, 8, 11]]
    distinct = int(lengths.sum()) + 8 * len(ids)
    assert tokens <= 1.15 * distinct
    assert ids.numel() + 8 * len(ids) > 2 * tokens


def test_prompts_of_one_length_share_a_pass():
    assert prefill._of_similar_length([0, 1, 2, 3, 4], [10, 100, 90, 11, 60]) == [[1, 2], [4], [3, 0]]
    assert prefill._of_similar_length([2], [1, 2, 3]) == [[2]]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
def test_whoever_calls_generate(speech_llm, lora):
    """As TRL does it: on the unwrapped model, with ids, mask and a config."""
    architecture, model, processor = speech_llm
    ids, mask, clips = rows(model, processor)
    config = settings(model, processor)
    if lora:
        model = get_peft_model(model, architecture.lora(r=2))
        model.eval()
    expected = ordinary(model, ids, mask, clips, config)
    passes = []
    handle = base_of(model).get_decoder().register_forward_hook(lambda *_: passes.append(1))
    with prefill.prompts_once(model, clips):
        assert torch.equal(
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config, disable_compile=True), expected
        )
    assert len(passes) > 9
    passes.clear()
    ordinary(model, ids, mask, clips, config)
    handle.remove()
    assert len(passes) == 9 and "generate" not in vars(model)


def test_a_prompt_of_one_token(speech_llm):
    _, model, processor = speech_llm
    ids = torch.tensor([[7], [7], [9]])
    batch = ids, torch.ones_like(ids), [None] * 3
    config = settings(model, processor)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config), ordinary(model, *batch, config))


def test_beyond_the_length_that_phi4_caches():
    """There the class forwards whole rows again; their clips still have to be heard."""
    model, processor = ARCHITECTURES["phi4_multimodal"](0)
    for weight in model.model.layers.parameters():
        weight.data.mul_(3)
    batch = rows(model, processor, (2, 2))
    config = settings(model, processor)
    unlimited = ordinary(model, *batch, config)
    limit = batch[0].size(1) + 4
    model.config.original_max_position_embeddings = limit
    model.model.rotary_emb.config.rope_parameters["original_max_position_embeddings"] = limit
    expected = ordinary(model, *batch, config)
    assert not torch.equal(unlimited, expected)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config), expected)


@pytest.mark.parametrize("returned", [1, 2])
def test_beams_are_searched_as_ever(speech_llm, returned):
    """Each copy of a row hears its clip."""
    _, model, processor = speech_llm
    ids, mask, clips = rows(model, processor, (2, 1))
    config = settings(model, processor, num_beams=2, num_return_sequences=returned)
    with heard(model, [clip for clip in clips for _ in range(2)]):
        expected = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert torch.equal(prefill.generate(model, ids, mask, clips, generation_config=config), expected)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "dynamic"}])
def test_a_cache_of_ones_own_choice(speech_llm, options):
    _, model, processor = speech_llm
    batch = rows(model, processor, (2, 1))
    config = settings(model, processor, **options)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config), ordinary(model, *batch, config))


def test_a_model_that_does_not_cache_is_refused(speech_llm):
    _, model, processor = speech_llm
    batch = rows(model, processor)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        prefill.generate(model, *batch, generation_config=settings(model, processor))
