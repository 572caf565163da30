"""From a checkpoint to a folder that others can open: adapter, merged model, full Omni.

`tars_trl.share.verify` checks such a folder, `tars_trl.share.cards` describes it, `tars_trl.share.hub` pushes it.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..models.loading import load_speech_llm, resolve
from ..record import read_run

FORMATS = ("adapter", "merged", "omni")
THINKER = "thinker."
"""Prefix of the thinker's tensors in an Omni checkpoint."""
# What an Omni folder keeps of its original beside the weights: everything but its card and git's own files.
NOT_COPIED = ("README.md", ".git*", "*.safetensors")


def load_trained(
    checkpoint: str | Path, *, base: str | None = None, revision: str | None = None, dtype: str = "float32"
) -> tuple[Any, Any]:
    """Model and processor of a checkpoint: an adapter on its base, or a whole model; on a GPU if there is one.

    Args:
        checkpoint: folder, as the trainer or `write_export` left it.
        base: hub id or folder of the base model, where it is not the one that the adapter names.
        revision: of the base on the hub; None for the one in the checkpoint's `run.json`.
        dtype: type to compute in.

    Returns:
        the model in evaluation mode (a `PeftModel` if the checkpoint is an adapter) and the processor.
    """
    model, adapter = (base, str(checkpoint)) if base is not None else resolve(str(checkpoint))
    if revision is None and base is None:
        revision = read_run(checkpoint).get("base_revision")
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return load_speech_llm(model, adapter, revision=revision if adapter else None, dtype=dtype, device=device)


def write_export(
    model: Any,
    processor: Any,
    folder: str | Path,
    kind: str,
    *,
    dtype: str = "float32",
    omni: str | None = None,
    revision: str | None = None,
) -> None:
    """Write a trained model in one of `FORMATS`.

    Args:
        model: from `load_trained`; merging changes it in place.
        processor: written beside it ("omni": the original's files are kept instead).
        folder: empty or not there yet.
        kind: "adapter": as it is; "merged": whole model, adapter added into the weights; "omni": the folder of a whole
            Qwen2.5-Omni with the thinker put back.
        dtype: type that a merged model's weights are stored in. "omni": that of the original.
        omni: for "omni", folder or hub id of the Omni checkpoint that the thinker came from.
        revision: of `omni`, on the hub.

    Raises:
        ValueError: an unknown kind, a folder that holds something, or a model that the kind does not fit.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if kind not in FORMATS:
        raise ValueError(f"format={kind!r} is not known. Use one of {', '.join(FORMATS)}.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output={str(folder)!r} holds files already; nothing is mixed with them. Give a new folder.")
    adapted = isinstance(model, PeftModel)
    if kind == "adapter":
        if not adapted:
            raise ValueError("format='adapter' was asked of a whole model: it has no adapter. Use 'merged' or 'omni'.")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    whole = model.merge_and_unload(safe_merge=True) if adapted else model
    if kind == "merged":
        whole.to(getattr(torch, dtype)).save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    if omni is None or whole.config.model_type != "qwen2_5_omni_thinker":
        raise ValueError(
            f"format='omni' with base={omni!r} and a {whole.config.model_type} model: it takes the thinker of a "
            "Qwen2.5-Omni and the Omni checkpoint it came from. Give that as base, or use format 'merged'."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as thinker:
        whole.save_pretrained(thinker)
        write_omni(thinker, omni, folder, revision)


def write_omni(thinker: str | Path, omni: str | Path, folder: str | Path, revision: str | None = None) -> None:
    """Put a thinker back into its Omni checkpoint: same files, same shards, same key names, other thinker.

    Args:
        thinker: folder of the merged thinker, as `save_pretrained` writes it.
        omni: folder or hub id of the Omni checkpoint.
        folder: where the result goes.
        revision: of `omni`, on the hub.

    Raises:
        ValueError: thinker and checkpoint do not have the same tensors.
    """
    source = Path(omni) if Path(omni).is_dir() else Path(snapshot_download(str(omni), revision=revision))
    tensors = {THINKER + name: file for file in _weights(Path(thinker)) for name in _keys(file)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    left = set(tensors)
    for shard in _weights(source):
        weights = load_file(shard)
        for name in [name for name in weights if name.startswith(THINKER)]:
            found = name
            if name not in tensors and name == f"{THINKER}lm_head.weight":  # tied: written once, as the embedding
                found = f"{THINKER}model.embed_tokens.weight"
            if found not in tensors:
                raise ValueError(
                    f"{name} of {omni} has no counterpart in the trained thinker, so the two are not of one model. "
                    "Give the Omni checkpoint that the training started from as base."
                )
            with safe_open(tensors[found], "pt") as file:
                tensor = file.get_tensor(found.removeprefix(THINKER))
            if tensor.shape != weights[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(weights[name].shape)} in {omni} and {tuple(tensor.shape)} in the trained "
                    "thinker. Give the Omni checkpoint that the training started from as base."
                )
            weights[name] = tensor.to(weights[name].dtype)
            left.discard(found)
        save_file(weights, folder / shard.name, metadata={"format": "pt"})
    if left:
        raise ValueError(
            f"{len(left)} tensors of the trained thinker have no place in {omni}, such as {min(left)}. "
            "Give the Omni checkpoint that the training started from as base."
        )
    for file in sorted(source.iterdir()):
        if file.is_file() and not any(file.match(pattern) for pattern in NOT_COPIED):
            shutil.copy(file, folder / file.name)


def _weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors weights. Give a folder or hub id that does.")
    return files


def _keys(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def stored_dtype(folder: str | Path) -> str:
    """Type that most of a folder's weights are stored in: float32, float16 or bfloat16."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    counts: dict[str, int] = {}
    for file in _weights(Path(folder)):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                name = names.get(opened.get_slice(key).get_dtype(), "float32")
                counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name])
