"""What is sent to an engine: merged weights, whose reading leaves the model as it was."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.models.vllm import merged_parameters, with_one_placeholder
from tests.grpo.vllm_stand_in import stored_names


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def adapted(request, tiny):
    """A thinker with an adapter that does something."""
    config = LoraConfig(r=4, target_modules=Qwen2_5OmniThinker.lora_targets, init_lora_weights=False)
    return get_peft_model(copy.deepcopy(tiny[0]).to(request.param), config, autocast_adapter_dtype=False)


def test_merged_parameters_are_those_of_the_merged_model(adapted):
    sent = dict(merged_parameters(adapted))
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert sent.keys() == dict(merged.named_parameters()).keys()
    assert all(torch.equal(sent[name], weight) for name, weight in merged.named_parameters())


def test_base_weights_do_not_drift(adapted):
    """After 100 readings they are the same to the last bit. Merging and unmerging, as TRL does, moves them."""
    kept = {name: weight.clone() for name, weight in adapted.named_parameters()}

    def drift():
        return max(float((weight - kept[name]).abs().max()) for name, weight in adapted.named_parameters())

    for _ in range(100):
        for _ in merged_parameters(adapted):
            pass
    assert drift() == 0
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    assert drift() > 0


def test_names_are_those_of_the_whole_checkpoint(tiny):
    """`thinker.` and the name that transformers itself stores a parameter under."""
    stored = {name: key for key, name in stored_names(copy.deepcopy(tiny[0])).items()}
    names = {name: Qwen2_5OmniThinker().vllm_parameter(name) for name, _ in tiny[0].named_parameters()}
    assert names == {name: f"thinker.{key}" for name, key in stored.items()}
    assert {name.split(".")[1] for name in names.values()} == {"model", "audio_tower", "visual"}
    head = Qwen2_5OmniThinker().vllm_parameter("lm_head.weight")
    assert head == "thinker.lm_head.weight"  # tied in the tiny model, not in 7B


def test_one_placeholder_a_clip():
    assert with_one_placeholder([1, 2, 9, 9, 9, 3], 9) == [1, 2, 9, 3]
    assert with_one_placeholder([1, 2, 3], 9) == [1, 2, 3]
