"""Seconds and memory of forms that take turns; and what this machine can."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Measured = dict[str, Any]
"""`seconds` and `mib` of each run."""


def seconds() -> float:
    """Now; the process's own time where it has one thread."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def status(field: str) -> float:
    """MiB of `VmRSS` (in use now) or `VmHWM` (the most since it was last reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Let `VmHWM` begin anew, and give freed memory back, which would hide what comes next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measured(form: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a form, and the most MiB that it needed beside what was there."""
    forget_peak()
    before, start = status("VmRSS"), seconds()
    form()
    return seconds() - start, status("VmHWM") - before


def take_turns(forms: dict[str, Callable[[], tuple[float, float]]], repeats: int) -> dict[str, Measured]:
    """Seconds and MiB of every form, `repeats` times each."""
    taken: dict[str, Measured] = {name: {"seconds": [], "mib": []} for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            for what, value in zip(("seconds", "mib"), form(), strict=True):
                taken[name][what].append(value)
    return taken


def matmul_rate(rows: int = 1024, inner: int = 512, columns: int = 1376) -> float:
    """Operations a second of this machine in float32, at the sizes of the benchmark's thinker; the best of many."""
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    best = min(_seconds(lambda: torch.mm(a, b)) for _ in range(50))
    return 2 * rows * inner * columns / best


def read_rate(numbers: int = 2**25) -> float:
    """Bytes a second that this machine reads from memory: a matrix times a vector."""
    a, b = torch.randn(numbers // 4096, 4096), torch.randn(4096)
    return 4 * numbers / min(_seconds(lambda: torch.mv(a, b)) for _ in range(10))


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
