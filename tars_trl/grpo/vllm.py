"""Rollouts by vLLM: TRL's generation layer, taught to hear.

TRL starts the engine (colocate) or the client (server), gathers, samples and syncs weights; it knows images only.
`SpeechGeneration` adds what audio needs, and checks before the first step that vLLM and the trained model are the same
policy. R_rep's states come from the pass that computes the old log-probs, or from `pool_without_old_logps`.

Written against vLLM 0.22 (`vllm/inputs/llm.py`, `vllm/sampling_params.py`, `vllm/entrypoints/serve`) and tested with a
stand-in engine, not with vLLM itself.
"""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad

from ..data.audio import TARGET_RATE
from ..errors import SettingError
from ..models import SpeechLLM
from ..models.prompting import base_of, heard
from .rollout import Rollout

PARITY_QUESTIONS = 4  # rows of each process
PARITY_TOKENS = 32
Clip = tuple[np.ndarray, int]
"""Waveform and its rate in Hz, as vLLM takes audio."""


def check_supported(architecture: SpeechLLM, model_type: str) -> None:
    """Refuse `use_vllm` for architectures that vLLM has no native implementation of."""
    if not architecture.in_vllm:
        raise SettingError(
            f"use_vllm=True with a {model_type} model: vLLM has no implementation of it that takes these weights. "
            "Set use_vllm=False, or train a model of another class."
        )


class SpeechGeneration(VLLMGeneration):
    """The engine or client that TRL has started, with audio, checkpoint names and checked prompts."""

    architecture: SpeechLLM
    audio_token: int
    suppressed: list[int]
    parity_checked: bool

    @classmethod
    def take_over(cls, trainer: Any) -> "SpeechGeneration":
        """What a trainer's generation holds, as `GRPOTrainer` has started it, in an object of this class."""
        generation, architecture = trainer.vllm_generation, trainer.architecture
        base = base_of(trainer.accelerator.unwrap_model(trainer.model))
        speech = cls.__new__(cls)
        speech.__dict__.update(generation.__dict__)
        speech.architecture, speech.audio_token = architecture, architecture.audio_token(base)
        speech.suppressed = trainer.args.generation_kwargs["suppress_tokens"]
        speech.parity_checked = False
        # vLLM knows no `suppress_tokens`; -100 is the most that its servers accept.
        options = {name: value for name, value in generation.generation_kwargs.items() if name != "suppress_tokens"}
        bias = {**dict.fromkeys(speech.suppressed, -100.0), **options.get("logit_bias", {})}
        speech.generation_kwargs = {**options, "logit_bias": bias, "stop_token_ids": list(trainer.eos_token_ids)}
        if speech.mode == "colocate":
            speech.llm.generate = partial(_with_audio, speech.llm.generate)
        elif speech.accelerator.is_main_process:
            speech.vllm_client.image_features = partial(audio_features, speech.vllm_client)
        return speech

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return self.architecture.vllm_parameter(super()._fix_param_name_to_vllm(name, extra_prefixes))

    def generate(
        self, prompts: list[list[int]], images: list | None, num_generations: int, profiler: Any = None
    ) -> tuple:
        """As TRL's, with `[(waveform, rate)]` or None for each row in place of images.

        An engine gets one placeholder and the waveform, and expands the placeholder itself; a server gets the expanded
        prompt with the features it has made of the waveform. Either way its tokens have to be ours.

        Raises:
            ValueError: prompts that came back differ from those that were meant.
        """
        clips = images if images is not None and any(clip is not None for clip in images) else None
        if self.mode == "server":  # every process has to hand on a list, or none: TRL gathers them
            return super().generate(prompts, clips, num_generations, profiler)
        sent = [self._unexpanded(ids) for ids in prompts]
        returned, completions, logprobs, tokens = super().generate(sent, clips, num_generations, profiler)
        for number, (ids, other) in enumerate(zip(prompts, returned, strict=True)):
            if list(other) != ids:
                counts = [list(row).count(self.audio_token) for row in (ids, other)]
                raise ValueError(
                    f"vLLM sampled row {number} from another prompt than is trained on: {len(other)} tokens with "
                    f"{counts[1]} of audio instead of {len(ids)} with {counts[0]}. Use a vLLM whose processor for this "
                    "model agrees with the installed transformers, or set use_vllm=False."
                )
        return prompts, completions, logprobs, tokens

    def _unexpanded(self, ids: list[int]) -> list[int]:
        """The prompt with one placeholder for the clip, where ours has one for every audio embedding."""
        if self.audio_token not in ids:
            return ids
        first, count = ids.index(self.audio_token), ids.count(self.audio_token)
        return ids[: first + 1] + ids[first + count :]

    def _place_features(self, features: dict | None, prompt_ids: list[int]) -> dict | None:
        """Point the clip's features at the placeholders of our prompt, which have to be as many as the server counts.

        The server reports where the clip lies in the conversation that it was sent in, which is not the prompt.
        """
        if features is None:
            return None
        counted = [place["length"] for place in features["mm_placeholders"]["audio"]]
        ours = prompt_ids.count(self.audio_token)
        if counted != [ours]:
            raise ValueError(
                f"The vLLM server makes {counted} audio tokens of a clip that has {ours} in the prompt that is trained "
                "on. Use a vLLM whose processor for this model agrees with the installed transformers, or set "
                "use_vllm=False."
            )
        place = {"offset": prompt_ids.index(self.audio_token), "length": ours}
        return {**features, "mm_placeholders": {"audio": [place]}}

    def greedy(self, prompts: list[list[int]], clips: list, num_tokens: int) -> list[list[int]]:
        """Greedy completions of at most `num_tokens`, one a prompt; all processes have to ask for equally many."""
        wanted = {
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "max_completion_length": num_tokens,
            "generation_kwargs": {name: self.generation_kwargs[name] for name in ("logit_bias", "stop_token_ids")},
        }
        kept = {name: getattr(self, name) for name in wanted}
        self.__dict__.update(wanted)
        try:
            return self.generate(prompts, clips, 1)[1]
        finally:
            self.__dict__.update(kept)

    def check_parity(self, trainer: Any, rollout: Rollout) -> None:
        """Stop unless vLLM's greedy tokens are those of the trained model, near ties aside; once, before it samples.

        A few rows of each process are completed by vLLM, and the model then scores every token: how much less likely,
        in nats, than its own favourite at that place. Rounding costs tenths; another model, a clip that was not heard
        or weights that did not arrive cost many times that.

        Args:
            trainer: whose model is trained; TRL notes in it which step's weights vLLM has.
            rollout: with its clips' audio embeddings.

        Raises:
            ValueError: on all processes, if a token on any of them is worse than `vllm_parity_tolerance`.
        """
        tolerance = trainer.args.vllm_parity_tolerance
        if self.parity_checked or not tolerance:
            return
        self.parity_checked = True
        self.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
        count = min(PARITY_QUESTIONS, len(rollout.rows))
        places = [len(rollout.rows) * number // count for number in range(count)]
        prompts = [rollout.prompts[place].ids for place in places]
        completions = self.greedy(prompts, [clips_of(rollout)[place] for place in places], PARITY_TOKENS)
        worst, text = 0.0, ""
        clips = [rollout.clips[place] for place in places]
        with torch.no_grad(), heard(base_of(trainer.accelerator.unwrap_model(trainer.model)), clips):
            for place, prompt, completion in zip(places, prompts, completions, strict=True):
                costs, favourites = self._costs(trainer, prompt, list(completion))
                token = int(costs.argmax())
                if costs[token] > worst:
                    worst, row = float(costs[token]), rollout.rows[place]
                    said, better = (
                        repr(trainer._tokenizer.decode([t])) for t in (completion[token], favourites[token])
                    )
                    text = (
                        f"token {token + 1} of question {row['key']} ({row['modality']}) is {said} with vLLM and "
                        f"{better} with the trained model, {worst:.2f} nats apart"
                    )
        worsts = trainer.accelerator.gather(torch.tensor([worst], device=trainer.accelerator.device))
        if float(worsts.max()) > tolerance:
            raise ValueError(
                f"vLLM and the trained model differ before the first step: {text or 'on another process'} "
                f"(vllm_parity_tolerance={tolerance}). Rollouts would come from another policy. Check that vLLM serves "
                "this very base model and revision and supports its audio, or set use_vllm=False; 0 leaves this check "
                "out."
            )

    def _costs(self, trainer: Any, prompt: list[int], completion: list[int]) -> tuple[Tensor, Tensor]:
        """(tokens,) each: by how many nats a token is less likely than the model's favourite, and that favourite."""
        ids = torch.tensor([prompt + completion], device=trainer.accelerator.device)
        with trainer.accelerator.autocast():
            logits = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits = logits[0, len(prompt) - 1 : -1].float()
        logits[:, self.suppressed] = -torch.inf
        best = logits.log_softmax(-1).max(-1)
        chosen = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        return (best.values - chosen).nan_to_num(nan=torch.inf), best.indices


def clips_of(rollout: Rollout) -> list[list[Clip] | None]:
    """Each row's clip where TRL has its images, None for a written row."""
    waveforms = [prompt.waveform for prompt in rollout.prompts]
    return [None if waveform is None else [(waveform, TARGET_RATE)] for waveform in waveforms]


def pool_without_old_logps(trainer: Any, rollout: Rollout, completion_ids: list[list[int]]) -> None:
    """A pass of its own over what vLLM sampled, for R_rep's states, where TRL computes no old log-probs."""
    device, value = trainer.accelerator.device, trainer._tokenizer.pad_token_id
    ids, masks = [], []
    for rows, side in (([prompt.ids for prompt in rollout.prompts], "left"), (completion_ids, "right")):
        tensors = [torch.tensor(row, device=device) for row in rows]
        ids.append(pad(tensors, padding_value=value, padding_side=side))
        masks.append(pad([torch.ones_like(row) for row in tensors], padding_value=0, padding_side=side))
    args = trainer.args
    batch = args.per_device_train_batch_size if trainer.model.training else args.per_device_eval_batch_size
    with torch.no_grad(), disable_gradient_checkpointing(trainer.model, args.gradient_checkpointing_kwargs):
        trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat(ids, 1), torch.cat(masks, 1), ids[1].size(1), batch
        )


def _with_audio(generate: Callable, prompts: list[dict[str, Any]], **options: Any) -> list:
    """`LLM.generate` for what TRL takes for images."""
    renamed = []
    for prompt in prompts:
        media = prompt.get("multi_modal_data")
        renamed.append({**prompt, "multi_modal_data": {"audio": media["image"]}} if media else prompt)
    return generate(renamed, **options)


def audio_features(client: Any, clips: list[list[Clip] | None], max_concurrent_requests: int = 16) -> list[dict | None]:
    """What a vLLM server's processor makes of each clip; in place of `VLLMClient.image_features`.

    The server generates from token ids or from messages, never from ids and media. So a clip is first sent in a message
    of its own (as 32-bit float, losslessly), and the features that come back are paired with our tokens.

    Raises:
        RuntimeError: the server refuses, with its answer.
    """

    def send(row: list[Clip] | None) -> dict | None:
        if row is None:
            return None
        ((waveform, rate),) = row
        file = io.BytesIO()
        soundfile.write(file, waveform, rate, format="WAV", subtype="FLOAT")
        audio = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
        message = {"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}
        response = client.session.post(
            f"{client.base_url}/v1/chat/completions/render",
            json={"model": client.model, "messages": [message], "max_tokens": 1},
        )
        if response.status_code != 200:
            raise RuntimeError(
                f"The vLLM server at {client.base_url} did not process a clip of {len(waveform) / rate:.1f} s: "
                f"{response.status_code}, {response.text[:500]}. Audio goes through /v1/chat/completions/render; from "
                "vLLM 0.30 on start the server with --enable-scale-out."
            )
        return response.json()["features"]

    with ThreadPoolExecutor(max_concurrent_requests) as executor:
        return list(executor.map(send, clips))
