"""Prompts shared in a packed row: the same log-probs, entropies and gradients as with each prompt repeated."""

import pytest
import torch
from peft import get_peft_model
from trl.trainer.utils import add_fused_lm_head

from tars_trl.errors import SettingError
from tars_trl.models import architecture_of
from tars_trl.models.gemma4 import Gemma4
from tars_trl.models.hooks import StatePooler
from tars_trl.models.prompting import base_of, heard, prompt_batch, twin_prompt
from tars_trl.models.shared_prefix import (
    ATTENTION,
    PackedStatePooler,
    attach,
    first_with_same_prompt,
    longest_row,
    pack,
    packed_logps,
    saving,
)
from tests.conftest import question
from tests.models.tiny import ARCHITECTURES

# Largest relative difference of log-probs, entropies and gradients over forty seeds: 7e-7 of their norm.
TOLERANCE = 1e-5


@pytest.fixture(params=ARCHITECTURES)
def speech_llm(request):
    """(architecture, model, processor): a tiny random model whose layers matter, with TRL's fused head."""
    model, processor = ARCHITECTURES[request.param](0)
    for weight in base_of(model).get_decoder().layers.parameters():
        weight.data.mul_(2)  # as it is, the embeddings decide the logits
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    attach(model)
    return architecture_of(request.param), model, processor


def twins(model, processor, lengths, seed=0):
    """Questions asked aloud and in writing, each with completions of the given lengths: ids, mask, T and clips."""
    architecture = architecture_of(model.config.model_type)
    generator = torch.Generator().manual_seed(seed)
    prompts, completions = [], []
    for number, of_one_prompt in enumerate(lengths):
        row = question(number // 2, 0.5 + 0.3 * number)
        prompt = twin_prompt(architecture, processor, row, "text" if number % 2 else "speech")
        for length in of_one_prompt:
            prompts.append(prompt)
            completions.append(torch.randint(40, 200, (length,), generator=generator).tolist())
    batch = prompt_batch(base_of(model), prompts, processor.tokenizer.pad_token_id, completions)
    return batch.input_ids, batch.attention_mask, batch.input_ids.size(1) - batch.prompt_width, batch.clips


def repeated(model, ids, mask, width, clips):
    """As `GRPOTrainer` computes them."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-width] = -100
    with heard(model, clips):
        outputs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return outputs.log_probs[:, -width:], outputs.entropy[:, -width:]


def gradients(model, logps, entropies, seed=1):
    """Of a loss that weighs every token differently."""
    weights = torch.randn(2, *logps.shape, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    (weights[0] * logps + weights[1] * entropies).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one, other):
    assert one.shape == other.shape
    assert (one - other).norm() <= TOLERANCE * other.norm(), ((one - other).norm() / other.norm()).item()


def assert_same(model, batch, batch_size=None):
    """Packed and repeated form agree in log-probs, entropies and every gradient."""
    expected = repeated(model, *batch)
    expected_gradients = gradients(model, *expected)
    found = packed_logps(model, *batch, compute_entropy=True, batch_size=batch_size)
    found_gradients = gradients(model, *found)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one.detach(), other.detach())
    assert found_gradients.keys() == expected_gradients.keys() and found_gradients
    assert_equal(*(torch.cat([g.flatten() for g in grads.values()]) for grads in (found_gradients, expected_gradients)))
    scale = max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).norm() <= TOLERANCE * scale, name


LENGTHS = {
    "equal": [[6, 6, 6], [6, 6, 6]],
    "random": [[9, 2, 5, 7], [3, 8, 1, 4], [5, 6], [2]],
    "one token": [[1, 1], [1, 4]],
    "empty": [[0, 5, 0], [0, 0, 3]],
    "all empty but one": [[0, 0], [0, 2]],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_packed_equals_repeated(speech_llm, lengths):
    """The whole model, both twins of several questions in one pass."""
    _, model, processor = speech_llm
    assert_same(model, twins(model, processor, lengths))


@pytest.mark.parametrize("seed", range(3))
def test_packed_equals_repeated_for_random_lengths(speech_llm, seed):
    _, model, processor = speech_llm
    generator = torch.Generator().manual_seed(seed)
    lengths = [torch.randint(0, 12, (4,), generator=generator).tolist() for _ in range(4)]
    assert_same(model, twins(model, processor, lengths, seed))


def test_masked_truncated_completions(speech_llm):
    """Completions that TRL has masked as a whole count nothing, and do not enter the decoder."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, LENGTHS["random"])
    mask[1:3, -width:] = 0
    mask[-1, -width:] = 0
    assert_same(model, (ids, mask, width, clips))
    packed = pack(ids, mask, width, clips)
    assert (packed.owners == 0).sum() == 8 and not any((packed.owners == row).any() for row in (1, 2, 9 + 1))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_packed_equals_repeated_under_checkpointing(speech_llm, lora, reentrant):
    """Layers that are computed again in the backward pass see the same trunks."""
    architecture, model, processor = speech_llm
    batch = twins(model, processor, LENGTHS["random"])
    if lora:
        model = adapted(model, architecture)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    if reentrant and isinstance(architecture, Gemma4):  # whose layers hand on more than their outputs
        with pytest.raises(SettingError, match="use_reentrant=True"):
            repeated(model, *batch)
        return
    assert_same(model, batch)


def adapted(model, architecture):
    """The model with a LoRA that does something."""
    model = get_peft_model(model, architecture.lora(r=2, lora_dropout=0.0))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_packed_equals_repeated_with_lora(speech_llm):
    architecture, model, processor = speech_llm
    batch = twins(model, processor, LENGTHS["random"])
    assert_same(adapted(model, architecture), batch)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_passes_of_fewer_rows(speech_llm, batch_size):
    """Rows keep their places whatever the passes hold; as many passes as TRL makes."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, LENGTHS["random"])
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    batch = ids[shuffled], mask[shuffled], width, [clips[row] for row in shuffled.tolist()]
    passes = []
    handle = model.base_model.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        packed_logps(model, *batch, batch_size=batch_size)
    handle.remove()
    assert len(passes) == -(-len(ids) // batch_size)
    assert_same(model, batch, batch_size)


def test_gradients_reach_the_audio(speech_llm):
    """Audio embeddings are placed once, and get the gradient of all the rows that hear them."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, LENGTHS["random"])
    for row in range(4):
        assert clips[row] is clips[0]
    leaves = {id(clip): clip.clone().requires_grad_() for clip in clips if clip is not None}
    heard_clips = [None if clip is None else leaves[id(clip)] for clip in clips]
    found = []
    for logps, entropies in (
        repeated(model, ids, mask, width, heard_clips),
        packed_logps(model, ids, mask, width, heard_clips, compute_entropy=True),
    ):
        (logps.sum() + entropies.sum()).backward()
        found.append([leaf.grad.clone() for leaf in leaves.values()])
        for leaf in leaves.values():
            leaf.grad = None
    assert len(leaves) == 2
    for one, other in zip(*found, strict=True):
        assert other.norm() > 0
        assert_equal(one, other)


def test_a_clip_of_no_tokens_stays_in_the_graph(speech_llm):
    """Where parameters are spread, it ties a process without clips to the encoder."""
    _, model, processor = speech_llm
    ids, mask, width, _ = twins(model, processor, [[2, 3], [4, 2]])
    written = ids[2:], mask[2:], width
    none = torch.zeros(0, model.get_input_embeddings().weight.size(1), requires_grad=True)
    logps, _ = packed_logps(model, *written, [none, None])
    logps.sum().backward()
    assert none.grad is not None
    assert first_with_same_prompt(*written, [none, None]) == [0, 0]


def test_rows_share_a_prompt_only_with_the_same_clip(speech_llm):
    """Two clips of equal length have the same placeholders; what is heard decides."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, [[3, 3, 3]])
    other = clips[0] + 0.1
    assert first_with_same_prompt(ids, mask, width, [clips[0], other, clips[0]]) == [0, 1, 0]
    assert_same(model, (ids, mask, width, [clips[0], other, clips[0]]))


def test_decoder_tokens(speech_llm):
    """Counted by a hook on a layer: not one token twice, where the repeated form takes over three times as many."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, [[6, 9, 4, 7]] * 2)
    counted = []
    layer = base_of(model).get_decoder().layers[0]
    handle = layer.register_forward_hook(lambda _m, args, _out: counted.append(args[0].size(0) * args[0].size(1)))
    with torch.no_grad():
        repeated(model, ids, mask, width, clips)
        packed_logps(model, ids, mask, width, clips)
    handle.remove()
    prompts = {tuple(row[m.bool()].tolist()) for row, m in zip(ids[:, :-width], mask[:, :-width], strict=True)}
    distinct = sum(map(len, prompts)) + int(mask[:, -width:].sum())
    plain, packed = counted
    assert packed <= 1.15 * distinct and packed == distinct - len(ids)
    assert plain > 3 * packed
    firsts = first_with_same_prompt(ids, mask, width, clips)
    assert saving(ids, mask, width, firsts) == pytest.approx(plain / packed)


def test_positions_are_the_models_own(speech_llm):
    """Every packed token has the position that the class gives it in its row."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, LENGTHS["random"])
    packed = pack(ids, mask, width, clips)
    if hasattr(model, "get_rope_index"):
        own = model.get_rope_index(input_ids=ids, attention_mask=mask)[0]
        assert own.unique(dim=0).size(0) == 1  # time, height and width are alike without images
        own = own[0]
    else:
        own = model._prepare_position_ids_for_generation(ids, {"attention_mask": mask})
    for row in range(len(ids)):
        fed = mask[row, -width:].bool()
        expected = own[row, -width:][fed][:-1]
        assert packed.position_ids[0, packed.owners == row].tolist() == expected.tolist()
    for trunk in packed.trunks:
        assert packed.position_ids[0, trunk.prompt].tolist() == list(range(trunk.prompt.stop - trunk.prompt.start))


def test_pooled_states_equal_the_sampled_ones(speech_llm):
    """States pooled in a packed pass are those of a teacher-forced one over all tokens but the last."""
    architecture, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, LENGTHS["random"])
    counted = mask.clone().bool()
    counted[:, :-width] = False
    counted[:, -width:] &= mask[:, -width:].cumsum(1) < mask[:, -width:].sum(1, keepdim=True)
    embedding = model.get_input_embeddings()
    forced = StatePooler(architecture.state_modules(model), len(ids), teacher_forced=counted)
    packed = PackedStatePooler(architecture.state_modules(model), len(ids))
    with torch.no_grad():
        with forced.attached(embedding):
            repeated(model, ids, mask, width, clips)
        with packed.attached(embedding):
            packed_logps(model, ids, mask, width, clips, batch_size=5, pooler=packed)
    assert packed.counts.tolist() == forced.counts.tolist()
    assert_equal(packed.sums, forced.sums)


def test_plain_passes_stay_as_they_were(speech_llm):
    """An attached model's ordinary forward and generation are bit for bit those of one that is not."""
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, LENGTHS["random"])
    results = []
    for attention in (ATTENTION, "sdpa"):
        model.config.get_text_config()._attn_implementation = {"": attention}
        with torch.no_grad(), heard(model, clips):
            logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
            prompts = {"input_ids": ids[:, :-width], "attention_mask": mask[:, :-width]}
            results.append((logits, model.generate(**prompts, max_new_tokens=5)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_other_attention_is_refused(speech_llm):
    _, model, _ = speech_llm
    model.config.get_text_config()._attn_implementation = {"": "eager"}
    with pytest.raises(ValueError, match="'eager'.*'sdpa' alone"):
        attach(model)


def test_too_long_rows_are_refused():
    """Phi-4's frequencies change with the longest row of a pass."""
    model, processor = ARCHITECTURES["phi4_multimodal"](0)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    attach(model)
    batch = twins(model, processor, [[5, 3]])
    assert longest_row(model) == 4096
    model.config.original_max_position_embeddings = int(batch[1].sum(1).max()) - 1
    with pytest.raises(ValueError, match="shares prompts of at most"):
        packed_logps(model, *batch)


def test_sliding_window_longer_than_the_rows_changes_nothing():
    model, processor = ARCHITECTURES["phi4_multimodal"](0)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.config.sliding_window = 64
    attach(model)
    assert longest_row(model) == 64
    batch = twins(model, processor, [[5, 3], [2, 6]])
    assert batch[1].sum(1).max() <= 64
    assert_same(model, batch)


def test_padding_inside_of_a_completion_is_refused(speech_llm):
    _, model, processor = speech_llm
    ids, mask, width, clips = twins(model, processor, [[5, 3]])
    mask[0, -width + 1] = 0
    with pytest.raises(ValueError, match="between its tokens"):
        pack(ids, mask, width, clips)
