"""vLLM's engine, as training and sampling share it: how it is started, gets its weights and is given prompts.

It starts empty. Its weights are those of a model that transformers has loaded, adapters merged, so that a checkpoint
need not be one that vLLM can read, as that of a part alone. Tested with vLLM 0.22.1 on CPUs (`make test-vllm`).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ..data.audio import TARGET_RATE
from ..errors import SettingError
from . import Prompt, SpeechLLM, architecture_of
from .prompting import base_of, end_tokens_of

LEAST_BIAS = -100.0
"""What keeps a token from being sampled: the least that vLLM's servers accept."""


class Engine:
    """An engine in this process, on its device, with the weights of a model, which is not needed any more then.

    Args:
        model: a speech LLM, with or without an adapter, on any device.
        processor: the model's.
        folder: folder or hub id of the model, for its config and the engine's own processor.
        revision: of `folder` on the hub.
        gpu_memory_utilization: share of an accelerator's memory that the engine takes.
        max_model_length: most tokens of prompt and completion; None for the model's own limit.

    Raises:
        SettingError: vLLM has no implementation of the model, or is not installed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        folder: str,
        revision: str | None = None,
        *,
        gpu_memory_utilization: float = 0.9,
        max_model_length: int | None = None,
    ):
        base = base_of(model)
        self.architecture = architecture_of(base.config.model_type)
        check_supported(self.architecture, base.config.model_type, "backend='vllm'")
        self.audio_token, self.ends = self.architecture.audio_token(base), end_tokens_of(base, processor)
        self.bias = dict.fromkeys(self.architecture.unsampled_tokens(base), LEAST_BIAS)
        from trl.trainer.utils import ensure_master_addr_port
        from vllm import LLM

        state = PartialState()
        places = {
            "RANK": state.process_index,
            "LOCAL_RANK": state.local_process_index,
            "WORLD_SIZE": state.num_processes,
        }
        # They tell the engine its device; a process that is started later must not take its own place from them.
        with patch.dict(os.environ, {name: str(place) for name, place in places.items()}):
            ensure_master_addr_port()
            self.llm = LLM(
                folder,
                revision=revision,
                distributed_executor_backend="external_launcher",
                gpu_memory_utilization=gpu_memory_utilization,
                max_model_len=max_model_length,
                **engine_options(self.architecture, str(base.dtype).removeprefix("torch.")),
            )
        named = ((self.architecture.vllm_parameter(name), tensor) for name, tensor in merged_parameters(model))
        send_weights(self.llm, named)

    def sample(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        num_samples: int,
        max_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        **options: Any,
    ) -> list[list[int]]:
        """Token ids of `num_samples` completions a prompt, with the end token of those that came to an end.

        Args:
            prompts: N prompts.
            seeds: one a prompt, from 0 to 2 ** 63 - 1; which others are asked beside it does not matter.
            num_samples: completions of each prompt.
            max_tokens: most tokens of a completion.
            do_sample: whether to sample; else the likeliest tokens are taken.
            temperature: of sampling.
            options: further arguments of `vllm.SamplingParams`.

        Raises:
            ValueError: prompts that came back differ from those that were meant.
        """
        from vllm import SamplingParams

        requests, params = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            request: dict[str, Any] = {"prompt_token_ids": with_one_placeholder(prompt.ids, self.audio_token)}
            if prompt.waveform is not None:
                request["multi_modal_data"] = {"audio": (prompt.waveform, TARGET_RATE)}
            requests.append(request)
            params.append(
                SamplingParams(
                    n=num_samples,
                    seed=seed,
                    temperature=temperature if do_sample else 0.0,
                    max_tokens=max_tokens,
                    logit_bias=self.bias,
                    stop_token_ids=self.ends,
                    detokenize=False,
                    **options,
                )
            )
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        check_prompts([prompt.ids for prompt in prompts], [out.prompt_token_ids for out in outputs], self.audio_token)
        return [list(completion.token_ids) for out in outputs for completion in out.outputs]


def version(asked: str = "backend='vllm'") -> str:
    """Of the installed vLLM, by whichever distribution it was installed.

    Raises:
        SettingError: it is not installed.
    """
    names = metadata.packages_distributions().get("vllm")
    if not names:
        raise SettingError(
            f"{asked}: vLLM is not installed here. Install a version that goes with this package (0.22 to 0.30; "
            "docs/guides/vllm.md), or sample with transformers, which is the default."
        )
    return metadata.version(names[0])


def check_supported(architecture: SpeechLLM, model_type: str, asked: str) -> None:
    """Refuse what asked for vLLM where vLLM has no implementation that takes the model's weights."""
    if not architecture.in_vllm:
        raise SettingError(
            f"{asked} with a {model_type} model: vLLM has no implementation of it that takes these weights. Sample "
            "with transformers, which is the default, or use a model of another class."
        )


def engine_options(architecture: SpeechLLM, dtype: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for an engine that gets all its weights by `send_weights`, and reads none from files.

    Args:
        architecture: of the model.
        dtype: type to compute in. vLLM's own choice for a float32 checkpoint is half precision.
    """
    media = {"audio": 1, "image": 0, "video": 0}  # no memory is set aside for what is never sent
    config = architecture.vllm_config
    return {"hf_overrides": config, "load_format": "dummy", "dtype": dtype, "limit_mm_per_prompt": media}


@torch.no_grad()
def merged_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of a model, in its base's names, with its adapters added; nothing is changed meanwhile or after.

    One adapted layer at a time is merged, read, and given back the very weights that it had: subtracting what was added
    would leave a rounding error at each call.

    Args:
        model: with or without adapters of PEFT; not sharded.
    """
    base = base_of(model)
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, parameter in base.named_parameters():
        if "original_module" not in name and not any(name.startswith(f"{layer}.") for layer in adapted):
            yield name.replace("modules_to_save.default.", ""), parameter.data
    for name, layer in adapted.items():
        inner = layer.get_base_layer()
        kept = {part: parameter.data.clone() for part, parameter in inner.named_parameters()}
        layer.merge()
        merged = {part: parameter.data.clone() for part, parameter in inner.named_parameters()}
        layer.unmerge()
        for part, parameter in inner.named_parameters():
            parameter.data.copy_(kept[part])
        yield from ((f"{name}.{part}", tensor) for part, tensor in merged.items())


def send_weights(llm: Any, parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Replace all weights of an engine in this process, and drop what it remembers of prompts under the old ones.

    vLLM lays them out for its kernels again: `load_weights` alone, which TRL 1.16 calls, finds no weights to write over
    where they have been packed, as on a CPU.

    Args:
        llm: a `vllm.LLM`.
        parameters: all of them, under the names of the checkpoint that vLLM knows (`SpeechLLM.vllm_parameter`).
    """
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(parameters)})
    llm.reset_prefix_cache()


def with_one_placeholder(ids: list[int], audio_token: int) -> list[int]:
    """A prompt as an engine takes it: one placeholder for the clip, where ours has one for every audio embedding."""
    if audio_token not in ids:
        return ids
    first, count = ids.index(audio_token), ids.count(audio_token)
    return ids[: first + 1] + ids[first + count :]


def check_prompts(prompts: Sequence[list[int]], returned: Sequence[Sequence[int]], audio_token: int) -> None:
    """Refuse completions of other prompts than were meant: the engine has expanded the placeholders by itself.

    Raises:
        ValueError: they differ; what is different is told.
    """
    for number, (ids, other) in enumerate(zip(prompts, returned, strict=True)):
        if list(other) != ids:
            counts = [list(row).count(audio_token) for row in (ids, other)]
            raise ValueError(
                f"vLLM sampled row {number} from another prompt than was meant: {len(other)} tokens with "
                f"{counts[1]} of audio instead of {len(ids)} with {counts[0]}. Use a vLLM whose processor for this "
                "model agrees with the installed transformers, or sample without vLLM."
            )
