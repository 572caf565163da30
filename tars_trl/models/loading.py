"""Speech LLMs, loaded one way, with their processor and adapter; and what tells one set of weights from another."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoProcessor
from transformers.utils import find_adapter_config_file

from ..data.hub import check_on_hub
from ..data.journal import sampled_pieces
from ..errors import SettingError
from ..record import read_run
from . import architecture_of, native_revision

WEIGHTS = (".safetensors", ".bin")
DESCRIPTIONS = (".json", ".jinja", ".txt", ".model")
NO_MODEL_FILES = ("trainer_state.json", "training_args.bin", "run.json", "manifest.json")
PIECE = 1 << 20  # bytes; 64 of them are read of a weight file, smaller files whole


# ---- A model to ask ------------------------------------------------------------------------------------------------


def load_speech_llm(
    model: str,
    adapter: str | None = None,
    *,
    model_revision: str | None = None,
    dtype: str = "auto",
    device: Any = None,
    attn_implementation: str | None = None,
    move: bool = True,
) -> tuple[Any, Any]:
    """(model, processor) of a speech LLM, in evaluation mode.

    Args:
        model: hub id or folder, also an adapter's (see `resolve`).
        adapter: LoRA adapter, hub id or folder; it stays unmerged.
        model_revision: of `model` on the hub; None for what `base_revision` says.
        dtype: name of a torch type; "auto" is the saved one, on a CPU float32.
        device: where it runs; None for the accelerator, if there is one, else the CPU.
        attn_implementation: of transformers; None for the class's default.
        move: whether the weights go to `device`; else they stay in main memory, in the type that they had there.

    Raises:
        ValueError: an architecture that is not supported.
    """
    model, adapter = resolve(model, adapter)
    model_revision = base_revision(model, adapter, model_revision)
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    loaded = load_model(model, revision=model_revision, dtype=dtype, full_precision=device.type == "cpu", **options)
    loaded = loaded.to(device) if move else loaded
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    return loaded.eval(), load_processor(model, adapter, model_revision)


def load_model(
    model_id: str, *, dtype: str | None = None, full_precision: bool, revision: str | None = None, **options: Any
) -> Any:
    """The text-producing model alone, where transformers would load the class that the checkpoint names.

    Args:
        model_id: hub id or folder.
        dtype: type to load the weights in; "auto" or None: as saved, or float32 with `full_precision`.
        full_precision: see `dtype`.
        revision: on the hub; None for the one with weights of the class.
        options: of `from_pretrained`.
    """
    options["revision"] = native_revision(model_id) if revision is None else revision
    options["dtype"] = "float32" if dtype in (None, "auto") and full_precision else dtype or "auto"
    config = _config(model_id, options)
    model = architecture_of(config.model_type).load(model_id, **options)
    model.config._commit_hash = _commit(model_id, options)  # for a run's record; transformers 5 left it out
    return model


def number_of_parameters(model_id: str, revision: str | None = None, **options: Any) -> int:
    """Parameters of the text-producing model, from its configuration alone; arguments as in `load_model`."""
    options["revision"] = native_revision(model_id) if revision is None else revision
    config = _config(model_id, options)
    return sum(parameter.numel() for parameter in architecture_of(config.model_type).empty(config).parameters())


def _config(model_id: str, options: dict[str, Any]) -> Any:
    names = ("revision", "trust_remote_code", "token", "cache_dir")
    return AutoConfig.from_pretrained(model_id, **{name: options[name] for name in names if name in options})


def _commit(model_id: str, options: dict[str, Any]) -> str | None:
    """Commit on the hub of a model that was just loaded from there; None of a folder."""
    if Path(model_id).is_dir():
        return None
    file = try_to_load_from_cache(model_id, "config.json", options.get("cache_dir"), options["revision"])
    return Path(file).parent.name if isinstance(file, str) else None  # snapshots/<commit>/


def load_processor(model: str, adapter: str | None = None, model_revision: str | None = None) -> Any:
    """The processor, from the adapter's folder where that has one (a trained run saves it), else from the model.

    `model_revision` is the model's; None for what `base_revision` says.
    """
    model_revision = base_revision(model, adapter, model_revision)
    saved = adapter is not None and any(
        (Path(adapter) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")
    )
    config = _config(model, {"revision": model_revision})
    processor = AutoProcessor.from_pretrained(
        adapter if saved else model,
        revision=None if saved else model_revision,
        **architecture_of(config.model_type).processor_options,
    )
    processor.tokenizer.padding_side = "left"  # told to `from_pretrained`, clips would be padded on the left, too
    return processor


def resolve(model: str, adapter: str | None = None) -> tuple[str, str | None]:
    """(model, adapter), where `model` may itself be an adapter (folder or hub id): then it names its base model.

    Raises:
        SettingError: an adapter is given twice, or names no base model.
    """
    if find_adapter_config_file(model) is None:
        return model, adapter
    if adapter is not None:
        raise SettingError(
            f"model={model!r} is an adapter, and adapter={adapter!r} another. Give the base model as model."
        )
    base = PeftConfig.from_pretrained(model).base_model_name_or_path
    if not base:
        raise SettingError(
            f"model={model!r}: the adapter does not name its base model. Give --model BASE --adapter {model}."
        )
    return base, model


def base_revision(model: str, adapter: str | None = None, model_revision: str | None = None) -> str | None:
    """Revision of `model` on the hub: the given one, else the one that the adapter's run was trained on (`run.json`).

    Where neither says so it is the one with weights of the class (`SpeechLLM.native_revisions`), else main (None).
    """
    run = read_run(adapter) if model_revision is None and adapter is not None else {}
    if run.get("base_model") == model:
        model_revision = run.get("base_revision")
    return native_revision(model) if model_revision is None else model_revision


# ---- What tells weights apart --------------------------------------------------------------------------------------


def identity(model: str, model_revision: str | None = None, file: str = "config.json") -> str:
    """What tells one set of weights from another: a digest of a folder's files, or the commit of a hub id.

    Of a large weight file 64 pieces, evenly spread, are read: training changes every piece.

    Args:
        model: folder or hub id.
        model_revision: on the hub; None for what `base_revision` says.
        file: one that a hub id certainly has; an adapter's is adapter_config.json.

    Raises:
        FileNotFoundError, ConnectionError: the hub has no such model, or cannot be reached.
    """
    folder = Path(model)
    if not folder.is_dir():
        model_revision = base_revision(model, model_revision=model_revision)
        check_on_hub(model, revision=model_revision)
        found = Path(hf_hub_download(model, file, revision=model_revision))
        return f"{model}@{found.parent.name}"  # snapshots/<commit>/
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in WEIGHTS + DESCRIPTIONS or path.name in NO_MODEL_FILES:
            continue
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        for piece in sampled_pieces(path, PIECE, 64 * PIECE):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"
