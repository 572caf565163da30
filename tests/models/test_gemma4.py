"""What is Gemma 4's own: layers that see a window, and layers with the keys and values of others."""

import torch
from trl.trainer.utils import add_fused_lm_head

from tars_trl.models import prefill
from tars_trl.models.gemma4 import Gemma4
from tests.models.test_prefill import ordinary, rows, settings
from tests.models.test_shared_prefix import gradients, longest_row, repeated, twins
from tests.models.test_speech_llms import TOLERANCE, completions, prompts, scored
from tests.models.tiny import gemma4


def tiny_gemma(window):
    model, processor = gemma4(0, window)
    for weight in model.get_decoder().layers.parameters():
        weight.data.mul_(3)
    return model, processor


def test_windows_that_are_shorter_than_a_prompt():
    """A padded batch equals its rows, and prompts forwarded once give the tokens of `generate`; both see windows."""
    (model, processor), (wide, _) = tiny_gemma(16), tiny_gemma(512)
    batch, config = rows(model, processor, (2, 1, 1)), settings(model, processor)
    tokens = ordinary(model, *batch, config)
    assert torch.equal(prefill.generate(model, *batch, generation_config=config), tokens)
    assert not torch.equal(ordinary(wide, *batch, config), tokens)

    asked, answers = prompts(Gemma4(), processor), completions(5)
    together, states = scored(Gemma4(), model, asked, answers, processor.tokenizer.pad_token_id)
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        alone, state = scored(Gemma4(), model, [prompt], [answer], 0)
        torch.testing.assert_close(alone[0], together[number], **TOLERANCE)
        torch.testing.assert_close(state[0], states[number], **TOLERANCE)
    assert longest_row(model) == 16  # longer rows do not share their prompts


def test_checkpointing_keeps_the_gradient_of_what_layers_share():
    """Of keys and values that later layers read; a reentrant checkpoint, which loses it, is refused (shared tests)."""
    made = []
    for checkpointing in (False, True):
        model, processor = tiny_gemma(512)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        batch = twins(model, processor, [[5, 3]])
        made.append(gradients(model.train(), *repeated(model, *batch)))
    assert made[0].keys() == made[1].keys()
    for name, gradient in made[0].items():
        torch.testing.assert_close(made[1][name], gradient, rtol=1e-5, atol=1e-5)
