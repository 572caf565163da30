"""Measuring a model in both modalities: completions, accuracy, the gap."""

from ..sampling.complete import Completion, complete
from .metrics import paired_result, wilson_interval

__all__ = ["Completion", "complete", "paired_result", "wilson_interval"]
