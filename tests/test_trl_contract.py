"""What is overridden of TRL and transformers: a release that changed it is noticed here, before it trains anything."""

import inspect
import re

import pytest
from trl import DPOTrainer, GRPOTrainer, SFTTrainer
from trl.generation.vllm_generation import VLLMGeneration

from tars_trl.grpo.kept_run import KeptRun
from tars_trl.grpo.vllm import SpeechGeneration
from tars_trl.supervised import SpeechDPOTrainer, SpeechSFTTrainer, SpeechTrainer
from tars_trl.trainer import TARSGRPOTrainer
from tests.conftest import ROOT

# Parameters of the overridden methods in TRL 1.16 and transformers 5.23.
CARD = ["self", "model_name", "dataset_name", "tags"]
TRAIN = ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]
KEPT_RUN = {
    "train": TRAIN,
    "_save_checkpoint": ["self", "model", "trial"],
    "_send_telemetry": ["self"],
    "create_model_card": CARD,
    "init_hf_repo": ["self", "token", "private"],
}
GRPO = {
    "_get_train_sampler": ["self", "dataset"],
    "_get_eval_sampler": ["self", "eval_dataset"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_single_turn": [
        *("self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"),
    ],
    "_get_per_token_logps_and_entropies": [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes"),
        *("num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
    ],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
}
SUPERVISED = {"compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]}
DPO = {"_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"]}
VLLM = {
    "_fix_param_name_to_vllm": ["self", "name", "extra_prefixes"],
    "_iter_named_params": ["self"],
    "_place_features": ["self", "features", "prompt_ids"],
    "sync_weights": ["self"],
    "generate": ["self", "prompts", "images", "num_generations", "profiler"],
}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (KeptRun, GRPOTrainer, KEPT_RUN),
        (KeptRun, SFTTrainer, KEPT_RUN),
        (KeptRun, DPOTrainer, KEPT_RUN),
        (TARSGRPOTrainer, GRPOTrainer, GRPO),
        (SpeechTrainer, SFTTrainer, SUPERVISED),
        (SpeechTrainer, DPOTrainer, SUPERVISED),
        (SpeechSFTTrainer, SFTTrainer, {}),
        (SpeechDPOTrainer, DPOTrainer, DPO),
        (SpeechGeneration, VLLMGeneration, VLLM),
    ],
)
def test_signatures_of_all_overridden_methods(ours, theirs, expected):
    """Ours take the parent's parameters in its order; what they hand on unseen may be named there alone."""
    overridden = {
        name for name, member in vars(ours).items() if inspect.isfunction(member) and hasattr(theirs, name)
    } - {"__init__"}
    assert overridden == set(expected)
    for name, parameters in expected.items():
        parent = inspect.signature(inspect.unwrap(getattr(theirs, name)))
        assert list(parent.parameters) == parameters, f"{theirs.__name__}.{name}"
        own = inspect.signature(getattr(ours, name))
        named = [p.name for p in own.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert named == parameters[: len(named)], f"{ours.__name__}.{name}"
        own.bind(*parameters)  # as many as the parent takes


def test_constructors_take_what_trl_takes():
    for ours, theirs, positional in ((TARSGRPOTrainer, GRPOTrainer, 6), (SpeechSFTTrainer, SFTTrainer, 2)):
        parent = [name for name in inspect.signature(theirs.__init__).parameters if name != "self"]
        own = [name for name in inspect.signature(ours.__init__).parameters if name != "self"]
        assert own[:positional] == parent[:positional]
        assert {"quantization_config", "peft_config"} <= set(own) & set(parent)


def test_attributes_of_the_parent_that_are_used(make_trainer):
    trainer = make_trainer()
    used = (
        *("_metrics", "_logs", "_tokenizer", "eos_token_ids", "reward_func_names", "reward_weights"),
        *("_log_completion_extra", "chat_template_kwargs", "num_generations_eval", "shuffle_dataset"),
        *("vllm_importance_sampling_correction", "mask_truncated_completions", "num_iterations", "callback_handler"),
    )
    assert [name for name in used if not hasattr(trainer, name)] == []


def test_private_methods_are_known_in_three_files():
    """`super()._…` and `trainer._…` of TRL stand in the trainer, the supervised trainers and the vLLM file alone."""
    knowing = {"tars_trl/trainer.py", "tars_trl/supervised.py", "tars_trl/grpo/vllm.py"}
    for path in sorted((ROOT / "tars_trl").rglob("*.py")):
        if re.search(r"(super\(\)|\btrainer)\._[a-z]", path.read_text()):
            assert str(path.relative_to(ROOT)) in knowing, path
