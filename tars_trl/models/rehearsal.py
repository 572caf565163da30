"""Passes of a model whose tensors have no content: which memory they take and how much they compute.

Every operation runs, in its place and with its type, on tensors that are shapes alone (torch's fake tensors). So
checkpointing, adapters, autocast, a fused head and whatever a model's class does count as they are, for a model of any
size, in seconds. Attention counts as flash attention does, which keeps no scores.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


@dataclass(frozen=True)
class Rehearsed:
    """What a pass needs beside what was there before it: parameters, their gradients, inputs."""

    peak: int
    """Most bytes at one time."""
    kept: int
    """Bytes of what the function returned, and of what hangs on it."""
    flops: int
    """Floating-point operations of matrix products, convolutions and attention."""


def _attention_flops(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    """Two products for each head of the queries, whose keys may have fewer; half of them where it is causal."""
    rows, heads, queries, size = query.shape
    return 4 * rows * heads * queries * key.size(2) * size // (2 if args[2:] and args[2] else 1)


def _attention_backward_flops(_out: Tensor, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    """Five products, as the scores are computed again."""
    return 5 * _attention_flops(query, key, None, None, args[8]) // 2


FLOPS = flop_registry | {
    aten._scaled_dot_product_flash_attention: _attention_flops,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward_flops,
}
"""By operation; torch's own wants as many keys as queries. Its counting mode is not used: it keeps what it has seen."""


class _Counter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are freed, and what operations compute."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self.known: Any = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # not made here: they were there before
            if isinstance(tensor, Tensor):
                self.known.setdefault(tensor.untyped_storage(), 0)
        kwargs = kwargs or {}
        if func is aten.index.Tensor:  # by a mask that is known, so that the number of its rows is
            args = args[0], [place for index in args[1] for place in _places(index)]
        result = func(*args, **kwargs)
        if func._overloadpacket in FLOPS:
            self.flops += FLOPS[func._overloadpacket](*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                size = self.known[storage] = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """The numbers of what a mask marks, if it has content; else the index as it is."""
    known = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
    return index.nonzero().unbind(1) if index is not None and known else (index,)


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None, **kwargs: Any
) -> Tensor:
    """Of a fake tensor on a CPU, torch would take the attention that keeps all scores."""
    parts = query, key, value
    batch = torch.broadcast_shapes(*(part.shape[:-3] for part in parts))  # maybe of several dimensions
    rows = (part.expand(*batch, *part.shape[-3:]).flatten(0, -4) for part in parts)
    return aten._scaled_dot_product_flash_attention(*rows, 0.0, is_causal, scale=scale)[0].unflatten(0, batch)


class Rehearsal:
    """Rehearses passes of one model.

    Args:
        model: on torch's meta device; from here on its parameters are fake. With a gradient each, where they are
            trained, as after a first micro-batch.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        made: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is not None and old not in made:
                    made[old] = nn.Parameter(self.blank(old), requires_grad=old.requires_grad)
                module._parameters[name] = None if old is None else made[old]
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else self.blank(buffer)
            # Frequencies that depend on the longest position would have to look at it.
            if isinstance(getattr(module, "rope_type", None), str):
                module.rope_type = "default"
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = self.blank(parameter)

    def blank(self, like: Tensor) -> Tensor:
        """A fake tensor of a shape and type."""
        with self.mode:
            return torch.empty(like.shape, dtype=like.dtype)

    def fake(self, value: Any, known: bool = False) -> Any:
        """Tensors as fake ones, also those of a dataclass, a tuple or a dict of them; `known` ones unless floats."""
        if isinstance(value, Tensor):
            return value if known and not value.is_floating_point() else self.blank(value)
        if isinstance(value, tuple):
            return tuple(self.fake(part, known) for part in value)
        if isinstance(value, dict):
            return {name: self.fake(part, known) for name, part in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            parts = {field.name: self.fake(getattr(value, field.name), known) for field in fields(value)}
            return replace(value, **parts)
        return value

    def run(self, function: Callable[..., Any], *inputs: Any, mixed: bool = False, known: bool = False) -> Rehearsed:
        """Rehearse a function of the model, which does its own backward pass.

        Args:
            function: called with `inputs` as fake ones.
            inputs: tensors, dataclasses of them, or anything else.
            mixed: under autocast to bfloat16.
            known: whole numbers keep their values, in which lengths and masks lie that decide how clips are cut.
        """
        inputs = self.fake(inputs, known)
        counter = _Counter()
        cast = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
        flash = patch.object(nn.functional, "scaled_dot_product_attention", _flash_attention)
        with nullcontext() if known else self.mode, counter, cast, flash:
            result = function(*inputs)
            kept = counter.now
            del result
        return Rehearsed(counter.peak, kept, counter.flops)
