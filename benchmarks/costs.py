"""What a step has to compute and to move, counted from sizes alone; and what this machine can."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from tars_trl.models.prompting import base_of

FRAMES_A_TOKEN = 2  # of the audio tower, before its outputs are averaged by two


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    layers: int
    hidden: int
    linear: int
    """Parameters of the decoder's linear layers: each costs two operations a token."""
    head: int
    """Parameters of the output head."""
    audio: int
    """Parameters of the audio tower and the projector."""

    @classmethod
    def of(cls, model: Any, audio_modules: dict[str, str]) -> "Sizes":
        """Those of a speech LLM, whose adapter is not counted."""
        base = base_of(model)
        config, layers = base.config.get_text_config(), base.get_decoder().layers
        matrices = [p.numel() for name, p in layers.named_parameters() if p.dim() == 2 and "lora_" not in name]
        audio = sum(p.numel() for name in audio_modules.values() for p in base.get_submodule(name).parameters())
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            sum(matrices),
            config.hidden_size * config.vocab_size,
            audio,
        )

    def forward(self, tokens: int, seen: float, predicted: int) -> float:
        """Operations of `tokens` through the decoder, which see `seen` tokens each; `predicted` of them get logits."""
        return 2 * self.linear * tokens + 4 * self.layers * self.hidden * tokens * seen + 2 * self.head * predicted


@dataclass(frozen=True)
class Step:
    """One question, its completions all of one length."""

    spoken: int
    """Tokens of the spoken prompt."""
    written: int
    """Tokens of the written prompt."""
    completions: int
    """Of each twin."""
    length: int
    """Tokens of each completion."""
    shared: bool = True
    """Whether each prompt goes through the decoder once."""

    def tokens(self) -> int:
        """Tokens through the decoder, without padding: in sampling, and again in the update."""
        prompts = (1 if self.shared else self.completions) * (self.spoken + self.written)
        return 2 * (prompts + 2 * self.completions * self.length)

    def operations(self, sizes: Sizes) -> float:
        """Floating-point operations of sampling, and of the update with LoRA: forward, and backward to activations."""
        total = FRAMES_A_TOKEN * 2 * sizes.audio * self.spoken
        copies = 1 if self.shared else self.completions
        for prompt in (self.spoken, self.written):
            # A prompt sees the half of itself, a completion its prompt and the half of itself.
            prefill = copies * sizes.forward(prompt, prompt / 2, 0)
            own = self.completions * self.length
            completion = sizes.forward(own, prompt + self.length / 2, own)
            total += 3 * (prefill + completion)  # sampled once, updated forward and backward
        return total

    def bytes_read(self, sizes: Sizes, width: int = 4) -> float:
        """Bytes of weights and cached keys and values that sampling reads, token by token, `width` bytes a number."""
        weights = width * (sizes.linear + sizes.head) * self.length
        seen = sum(prompt + self.length / 2 for prompt in (self.spoken, self.written))
        return weights + width * 2 * sizes.layers * sizes.hidden * self.completions * self.length * seen


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
