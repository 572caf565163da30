"""A speech LLM with its processor and adapter, ready to be asked; and what identifies it in a result file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft import LoraConfig
from transformers import AutoConfig, AutoProcessor, set_seed
from transformers.utils import find_adapter_config_file

from ..record import read_run
from . import SpeechLLM, architecture_of
from .phi4_multimodal import MODEL_ID, NATIVE_REVISION

WEIGHTS = (".safetensors", ".bin")
DESCRIPTIONS = (".json", ".jinja", ".txt", ".model")
SAMPLED = 64  # pieces of 1 MB that are read of a weight file; smaller files are read whole
PIECE = 1 << 20


def resolve(model: str, adapter: str | None = None) -> tuple[str, str | None]:
    """(model, adapter), where `model` may itself be an adapter (folder or hub id): then it names its base model.

    Raises:
        ValueError: an adapter is given twice.
    """
    if find_adapter_config_file(model) is None:
        return model, adapter
    if adapter is not None:
        raise ValueError(
            f"model={model!r} is an adapter, and adapter={adapter!r} another. Give the base model as model."
        )
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(model).base_model_name_or_path
    if not base:
        raise ValueError(
            f"model={model!r}: the adapter does not name its base model. Give --model BASE --adapter {model}."
        )
    return base, model


def base_revision(model: str, adapter: str | None = None, revision: str | None = None) -> str | None:
    """Revision of `model` on the hub: the given one, else the one that the adapter's run was trained on (`run.json`).

    Where neither says so it is main, and of Phi-4-multimodal, whose main is remote code, the native one.
    """
    run = read_run(adapter) if revision is None and adapter is not None else {}
    if run.get("base_model") == model:
        revision = run.get("base_revision")
    return NATIVE_REVISION if revision is None and model == MODEL_ID else revision


def load_processor(model: str, adapter: str | None = None, revision: str | None = None) -> Any:
    """The processor, from the adapter's folder where that has one (a trained run saves it), else from the model.

    `revision` is the model's; None for what `base_revision` says.
    """
    revision = base_revision(model, adapter, revision)
    saved = adapter is not None and any(
        (Path(adapter) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")
    )
    return AutoProcessor.from_pretrained(adapter if saved else model, revision=None if saved else revision)


def load_speech_llm(
    model: str,
    adapter: str | None = None,
    *,
    model_revision: str | None = None,
    dtype: str = "auto",
    device: Any = "cpu",
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """(model, processor) of a speech LLM, in evaluation mode on `device`.

    Args:
        model: hub id or folder, also an adapter's (see `resolve`).
        adapter: LoRA adapter, hub id or folder; it stays unmerged.
        model_revision: of `model` on the hub; None for what `base_revision` says.
        dtype: "auto" is the saved type, or float32 on a CPU; else a name of a torch type.
        device: where it runs.

    Raises:
        ValueError: an architecture that is not supported.
    """
    model, adapter = resolve(model, adapter)
    revision = base_revision(model, adapter, model_revision)
    config = AutoConfig.from_pretrained(model, revision=revision)
    on_cpu = torch.device(device).type == "cpu"
    kind: Any = ("float32" if on_cpu else "auto") if dtype == "auto" else dtype
    loaded = architecture_of(config.model_type).load(
        model, revision=revision, dtype=kind, attn_implementation=attn_implementation
    ).to(device)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter)
    return loaded.eval(), load_processor(model, adapter, revision)


def identity(model: str, revision: str | None = None, file: str = "config.json") -> str:
    """What tells one set of weights from another: a digest of a folder's files, or the commit of a hub id.

    Of a large weight file 64 pieces, evenly spread, are read: training changes every piece.

    Args:
        model: folder or hub id.
        revision: on the hub; None for what `base_revision` says.
        file: one that a hub id certainly has; an adapter's is adapter_config.json.
    """
    folder = Path(model)
    if not folder.is_dir():
        revision = base_revision(model, revision=revision)
        return f"{model}@{Path(hf_hub_download(model, file, revision=revision)).parent.name}"  # snapshots/<commit>/
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in WEIGHTS + DESCRIPTIONS or path.name in ("trainer_state.json", "training_args.bin"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        step = max(PIECE, (size - PIECE) // (SAMPLED - 1)) if size > SAMPLED * PIECE else PIECE
        with path.open("rb") as opened:
            for start in range(0, size, step):
                opened.seek(start)
                digest.update(opened.read(PIECE))
    return f"sha256:{digest.hexdigest()}"


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
