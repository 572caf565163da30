"""Every architecture: a padded batch equals its unpadded rows, and audio is placed as the class itself places it.

Runs for each entry of `ARCHITECTURES`; a new speech LLM adds one line and its tiny model.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tars_trl.data.audio import load_audio
from tars_trl.data.prompts import spoken_prompt, written_prompt
from tars_trl.errors import AudioError
from tars_trl.models import AUDIO_TOKENS, architecture_of
from tars_trl.models.hooks import StatePooler
from tests.conftest import question
from tests.models.tiny import ARCHITECTURES, own_inputs

# Largest differences over twenty seeds: 9.5e-7 (log-probs) and 6.0e-7 (states), float32 sums in another order.
TOLERANCE = {"rtol": 0, "atol": 1e-5}
ROWS = [("speech", 0, 0.5), ("text", 1, None), ("speech", 2, 1.31), ("text", 3, None), ("speech", 1, 0.83)]


@pytest.fixture(params=ARCHITECTURES)
def speech_llm(request):
    """(architecture, model, processor) with a tiny random model."""
    model, processor = ARCHITECTURES[request.param](0)
    return architecture_of(request.param), model, processor


def prompts(architecture, processor, rows=ROWS):
    made = []
    for modality, number, seconds in rows:
        row = question(number, seconds)
        spoken = modality == "speech"
        conversation = (spoken_prompt if spoken else written_prompt)(row["prompt"])
        made.append(architecture.prompt(processor, conversation, load_audio(row["audio"]) if spoken else None))
    return made


def completions(count: int, vocabulary: int = 200) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(40, vocabulary, (4 + number,), generator=generator).tolist() for number in range(count)]


def batch(prompt_rows, completion_rows, pad):
    """Left-padded prompts and right-padded completions, as TRL lays them out."""
    width = max(len(prompt.ids) for prompt in prompt_rows)
    length = max(len(ids) for ids in completion_rows)
    ids, mask = [], []
    for prompt, completion in zip(prompt_rows, completion_rows, strict=True):
        left, right = width - len(prompt.ids), length - len(completion)
        ids.append([pad] * left + prompt.ids + completion + [pad] * right)
        mask.append([0] * left + [1] * (len(prompt.ids) + len(completion)) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask), width


def log_probs(model, ids, mask, width):
    logits = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    return logits[:, width - 1 : -1].gather(-1, ids[:, width:].unsqueeze(-1)).squeeze(-1)


def scored(architecture, model, prompt_rows, completion_rows, pad, poison=False):
    """Log-probs and pooled states of each row, from one forward pass over all of them."""
    ids, mask, width = batch(prompt_rows, completion_rows, pad)
    if poison:
        ids = torch.where(mask == 1, ids, 7)
    features = [prompt.features for prompt in prompt_rows]
    encoded = iter(architecture.encode(model, [f for f in features if f is not None]) if any(features) else [])
    rows = [None if f is None else next(encoded) for f in features]
    counted = mask.clone()
    counted[:, :width] = 0
    pooler = StatePooler(architecture.state_modules(model), len(rows), teacher_forced=counted.bool())
    embedding = model.get_input_embeddings()
    with architecture.placed(model, rows), pooler.attached(embedding):
        values = log_probs(model, ids, mask, width)
    states = pooler.pooled([len(c) for c in completion_rows], model.config.get_text_config().hidden_size)
    return [row[: len(c)] for row, c in zip(values, completion_rows, strict=True)], states


def test_padded_batch_equals_single_rows(speech_llm):
    """Log-probs, pooled states and gradients of a mixed batch equal those of its rows alone."""
    architecture, model, processor = speech_llm
    rows, answers, pad = prompts(architecture, processor), completions(len(ROWS)), processor.tokenizer.pad_token_id

    together, states = scored(architecture, model, rows, answers, pad)
    torch.cat(together).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        alone, state = scored(architecture, model, [row], [answer], pad)
        torch.testing.assert_close(alone[0], together[number], **TOLERANCE)
        torch.testing.assert_close(state[0], states[number], **TOLERANCE)
        alone[0].sum().backward()
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad / scale, gradients[name] / scale, rtol=0, atol=1e-5)


def test_poisoned_padding_changes_nothing(speech_llm):
    architecture, model, processor = speech_llm
    rows, answers, pad = prompts(architecture, processor), completions(len(ROWS)), processor.tokenizer.pad_token_id
    clean, clean_states = scored(architecture, model, rows, answers, pad)
    poisoned, poisoned_states = scored(architecture, model, rows, answers, pad, poison=True)
    for one, other in zip(clean, poisoned, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    torch.testing.assert_close(clean_states, poisoned_states, **TOLERANCE)


# Longer than a window, where a tower has windows; Qwen2-Audio's has one.
LONG = {"voxtral": 31, "qwen2_audio": 3.9}


@pytest.mark.parametrize("long", [False, True])
def test_own_forward_agrees(speech_llm, long):
    """Placed audio gives the logits of the class's own forward, which takes features; a foreign clip does not."""
    architecture, model, processor = speech_llm
    row = question(0, LONG.get(model.config.model_type, 9) if long else 0.9)
    waveform = load_audio(row["audio"])
    expected = model(**own_inputs(processor, row["prompt"], waveform)).logits

    def ours(waveform):
        prompt = architecture.prompt(processor, spoken_prompt(row["prompt"]), waveform)
        clips = architecture.encode(model, [prompt.features])
        with architecture.placed(model, clips):
            ids = torch.tensor([prompt.ids])
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    torch.testing.assert_close(ours(waveform), expected, **TOLERANCE)
    assert (ours(waveform[::-1].copy()) - expected).abs().max() > 10 * TOLERANCE["atol"]


def test_clips_encode_alike_alone_and_together(speech_llm):
    architecture, model, processor = speech_llm
    clips = [prompt.features for prompt in prompts(architecture, processor) if prompt.features is not None]
    for alone, together in zip(clips, architecture.encode(model, clips), strict=True):
        torch.testing.assert_close(architecture.encode(model, [alone])[0], together, **TOLERANCE)


def test_greedy_generation_and_its_pooled_states(speech_llm):
    """Sampling a padded mixed batch gives each row's own tokens, and pools the states a teacher-forced pass has."""
    architecture, model, processor = speech_llm
    rows, pad = prompts(architecture, processor), processor.tokenizer.pad_token_id
    config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=pad, eos_token_id=[5])
    config.suppress_tokens = architecture.unsampled_tokens(model)

    def generate(chosen):
        ids, mask, width = batch(chosen, [[]] * len(chosen), pad)
        features = [prompt.features for prompt in chosen]
        encoded = iter(architecture.encode(model, [f for f in features if f is not None]) if any(features) else [])
        clips = [None if f is None else next(encoded) for f in features]
        pooler = StatePooler(architecture.state_modules(model), len(chosen), [5])
        embedding = model.get_input_embeddings()
        with architecture.placed(model, clips), pooler.attached(embedding):
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        counts = [row.index(5) if 5 in row else len(row) - 1 for row in output[:, width:].tolist()]
        return output[:, width:], pooler.pooled(counts, model.config.get_text_config().hidden_size), counts

    tokens, states, counts = generate(rows)
    for number, row in enumerate(rows):
        alone, state, _ = generate([row])
        torch.testing.assert_close(alone[0], tokens[number][: alone.size(1)])
        torch.testing.assert_close(state[0], states[number], **TOLERANCE)
    fed = [ids.tolist()[:count] for ids, count in zip(tokens, counts, strict=True)]
    _, forced = scored(architecture, model, rows, fed, pad)
    torch.testing.assert_close(states, forced, **TOLERANCE)


def test_states_are_transformers_hidden_states(speech_llm):
    """Pooled states are the means of `hidden_states[1:]`; the embedding output is not among them."""
    architecture, model, processor = speech_llm
    (row,), (answer,) = prompts(architecture, processor, [("text", 1, None)]), completions(1)
    _, states = scored(architecture, model, [row], [answer], 0)
    ids = torch.tensor([row.ids + answer])
    hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
    expected = torch.stack([layer[0, len(row.ids) :].mean(0) for layer in hidden[1:]])
    torch.testing.assert_close(states[0], expected, **TOLERANCE)


def test_placeholders_and_embeddings_must_agree(speech_llm):
    architecture, model, processor = speech_llm
    assert architecture.audio_token(model) in architecture.unsampled_tokens(model)
    (row,) = prompts(architecture, processor, [("speech", 0, 0.5)])
    (clip,) = architecture.encode(model, [row.features])
    token = architecture.audio_token(model)
    sampled = torch.tensor([[*row.ids, token]])
    with architecture.placed(model, [clip]), pytest.raises(ValueError, match="placeholders"):
        model(input_ids=sampled, attention_mask=torch.ones_like(sampled))
    written = torch.tensor([[9, token, 9]])
    with architecture.placed(model, [None]), pytest.raises(ValueError, match="placeholders"):
        model(input_ids=written, attention_mask=torch.ones_like(written))


def test_lora_touches_the_language_model_alone(speech_llm):
    from peft import get_peft_model

    architecture, model, _ = speech_llm
    adapted = get_peft_model(copy.deepcopy(model), architecture.lora(r=2))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained and not any(path in name for name in trained for path in architecture.audio_modules.values())
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    outside = tuple(architecture.audio_modules.values())
    inside = {n for n in linears if not n.startswith(outside) and "lm_head" not in n}
    assert len(trained) == 2 * len(inside)


def test_a_left_padding_processor_changes_no_clip(speech_llm, tmp_path):
    """TRL and recipes load processors with `padding_side="left"`; that is for token ids, and not for waveforms."""
    architecture, _, processor = speech_llm
    processor.save_pretrained(tmp_path)
    options = {"padding_side": "left", "truncation_side": "left", **architecture.processor_options}
    left = type(processor).from_pretrained(tmp_path, **options)
    row = question(0, 0.93)
    one, other = (
        architecture.prompt(loaded, spoken_prompt(row["prompt"]), load_audio(row["audio"]))
        for loaded in (processor, left)
    )
    assert one.ids == other.ids
    for name, features in one.features.items():
        assert torch.equal(features, other.features[name]), name


def test_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="model_type='llama' is not supported"):
        architecture_of("llama")


def test_resampled_and_short_clips(speech_llm):
    """The shortest clip that the audio check lets through has at least one embedding, one for each placeholder."""
    architecture, model, processor = speech_llm
    conversation = spoken_prompt(question(0)["prompt"])
    for samples in (1600, 1601, 8000, 8079, 16000):
        prompt = architecture.prompt(processor, conversation, np.ones(samples, dtype="float32") * 0.1)
        (clip,) = architecture.encode(model, [prompt.features])
        assert clip.size(0) == prompt.ids.count(architecture.audio_token(model)) > 0


def test_what_a_processor_would_cut_is_refused(speech_llm):
    """Said of each whose processor takes no more; of the others a longer clip is heard whole."""
    architecture, _, processor = speech_llm
    conversation, longest = spoken_prompt(question(0)["prompt"]), architecture.longest_clip
    clip = np.full(int(16_000 * ((longest or 61) + 0.1)), 0.1, dtype="float32")
    if longest is not None:
        with pytest.raises(AudioError, match=f"hears {longest:g} s and no more"):
            architecture.prompt(processor, conversation, clip)
        return
    heard = int(architecture.prompt(processor, conversation, clip).features[AUDIO_TOKENS])
    assert heard >= int(61 * architecture.audio_tokens_per_second)


def test_audio_embeddings_of_a_second(speech_llm):
    architecture, model, processor = speech_llm
    seconds = 30.0 if model.config.model_type == "voxtral" else 2.0  # whose tower hears whole windows of 30 s
    (prompt,) = prompts(architecture, processor, [("speech", 0, seconds)])
    number = len(architecture.encode(model, [prompt.features])[0])
    assert number == pytest.approx(seconds * architecture.audio_tokens_per_second, abs=1)
