"""The model to train and the method's adapter, the same for `TARSGRPOTrainer` and the supervised trainers."""

from typing import Any

from peft import LoraConfig
from transformers import AutoConfig, set_seed

from .models import SpeechLLM, architecture_of


def load_model(model_id: str, args: Any, quantization_config: Any = None) -> Any:
    """The text-producing model alone, where TRL would load the class that the checkpoint's config names.

    Args:
        model_id: hub id or folder.
        args: a config of TRL's. `model_init_kwargs` are used up, so that TRL does not ask for a model id.
        quantization_config: as transformers takes it.
    """
    set_seed(args.seed)
    options = dict(args.model_init_kwargs or {})
    options.setdefault("dtype", "float32")  # as TRL
    options.setdefault("trust_remote_code", args.trust_remote_code)
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    names = ("revision", "trust_remote_code", "token", "cache_dir")
    config = AutoConfig.from_pretrained(model_id, **{name: options[name] for name in names if name in options})
    args.model_init_kwargs = None
    return architecture_of(config.model_type).load(model_id, **options)


def method_lora(architecture: SpeechLLM, args: Any) -> LoraConfig:
    """LoRA on the language model's linear layers by `lora_r`, `lora_alpha` and `lora_dropout` (paper: 8, 32)."""
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=architecture.lora_targets,
        task_type="CAUSAL_LM",
    )
