"""Rollouts by vLLM: TRL's generation layer, taught to hear.

TRL starts the engine (colocate) or the client (server), gathers, samples and syncs weights; it knows images only.
`SpeechGeneration` adds what Qwen2.5-Omni's audio needs, `VLLMRollouts` what the trainer needs: a check that vLLM and
the trained model are the same policy, and R_rep's states, which come from the pass that computes the old log-probs.

Written against vLLM 0.22 (`vllm/inputs/llm.py`, `vllm/sampling_params.py`, `vllm/entrypoints/serve`,
`vllm/model_executor/models/qwen2_5_omni_thinker.py`) and tested with a stand-in engine, not with vLLM itself.
"""

import base64
import io
from collections.abc import Callable, Collection, Sequence
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

from ..models.hooks import StatePooler

MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")
PARITY_QUESTIONS = 4  # rows of each process
PARITY_TOKENS = 32
Clip = tuple[np.ndarray, int]
"""Waveform and its rate in Hz, as vLLM takes audio."""


def check_supported(model_type: str) -> None:
    """Refuse `use_vllm` for architectures that vLLM has no native implementation of."""
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"use_vllm=True with a {model_type} model: vLLM has no implementation of it that takes these weights. "
            "Set use_vllm=False, or train a Qwen2.5-Omni."
        )


def checkpoint_name(name: str) -> str:
    """A thinker's parameter under the name of the whole Omni checkpoint, which vLLM's loader expects."""
    for module, stored in (("language_model.", "model."), ("audio_tower.", "audio_tower."), ("visual.", "visual.")):
        if name.startswith(f"model.{module}"):
            return f"thinker.{stored}{name.removeprefix(f'model.{module}')}"
    return f"thinker.{name}"


class SpeechGeneration(VLLMGeneration):
    """The engine or client that TRL has started, with audio, checkpoint names and checked prompts."""

    audio_token: int

    @classmethod
    def of(
        cls, generation: VLLMGeneration, audio_token: int, end_tokens: Sequence[int], suppressed: Sequence[int]
    ) -> "SpeechGeneration":
        """Take over what `generation` holds.

        Args:
            generation: as `GRPOTrainer` has started it.
            audio_token: id of the placeholder.
            end_tokens: ids that end a completion, the same as without vLLM.
            suppressed: ids that may not be sampled.
        """
        speech = cls.__new__(cls)
        speech.__dict__.update(generation.__dict__)
        speech.audio_token = audio_token
        # vLLM knows no `suppress_tokens`; -100 is the most that its servers accept.
        options = {name: value for name, value in generation.generation_kwargs.items() if name != "suppress_tokens"}
        bias = {**dict.fromkeys(suppressed, -100.0), **options.get("logit_bias", {})}
        speech.generation_kwargs = {**options, "logit_bias": bias, "stop_token_ids": list(end_tokens)}
        if speech.mode == "colocate":
            speech.llm.generate = partial(_with_audio, speech.llm.generate)
        elif speech.accelerator.is_main_process:
            speech.vllm_client.image_features = partial(audio_features, speech.vllm_client)
        return speech

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return checkpoint_name(super()._fix_param_name_to_vllm(name, extra_prefixes))

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


class VLLMRollouts:
    """The part of `TARSGRPOTrainer` that is only about vLLM; does nothing unless `use_vllm`."""

    _to_pool = False
    _parity_checked = False
    _pooler: StatePooler | None

    def _start_vllm(self: Any, suppressed: Collection[int]) -> None:
        if self.use_vllm:
            token = self.architecture.audio_token(self._base_model())
            self._suppressed = sorted(suppressed)
            self.vllm_generation = SpeechGeneration.of(
                self.vllm_generation, token, self.eos_token_ids, self._suppressed
            )

    def _check_parity(self: Any, clips: list, waveforms: list[list[Clip] | None]) -> None:
        """Stop unless vLLM's greedy tokens are those of the trained model, near ties aside; once, before it samples.

        A few rows of each process are completed by vLLM, and the model then scores every token: how much less likely,
        in nats, than its own favourite at that place. Rounding costs tenths; another model, a clip that was not heard
        or weights that did not arrive cost many times that.

        Raises:
            ValueError: on all processes, if a token on any of them is worse than `vllm_parity_tolerance`.
        """
        if self._parity_checked or not self.use_vllm or not self.args.vllm_parity_tolerance:
            return
        self._parity_checked = True
        self.vllm_generation.sync_weights()
        self._last_loaded_step = self.state.global_step
        count = min(PARITY_QUESTIONS, len(self._prompts))
        rows = [len(self._prompts) * number // count for number in range(count)]
        prompts = [self._prompts[row].ids for row in rows]
        completions = self.vllm_generation.greedy(prompts, [waveforms[row] for row in rows], PARITY_TOKENS)
        worst, text = 0.0, ""
        device = self.accelerator.device
        with torch.no_grad(), self._audio([clips[row] for row in rows]), self.accelerator.autocast():
            for row, prompt, completion in zip(rows, prompts, completions, strict=True):
                ids = torch.tensor([prompt + list(completion)], device=device)
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                logits = logits[0, len(prompt) - 1 : -1].float()
                logits[:, self._suppressed] = -torch.inf
                scores = logits.log_softmax(-1)
                chosen = scores.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
                cost = (scores.max(-1).values - chosen).nan_to_num(nan=torch.inf)
                place = int(cost.argmax())
                if cost[place] > worst:
                    words = [
                        repr(self._tokenizer.decode([token])) for token in (completion[place], scores[place].argmax())
                    ]
                    worst = float(cost[place])
                    text = (
                        f"token {place + 1} of question {self._rows[row]['key']} ({self._rows[row]['modality']}) is "
                        f"{words[0]} with vLLM and {words[1]} with the trained model, {worst:.2f} nats apart"
                    )
        largest = float(self.accelerator.gather(torch.tensor([worst], device=device)).max())
        if largest > self.args.vllm_parity_tolerance:
            raise ValueError(
                f"vLLM and the trained model differ before the first step: {text or 'on another process'} "
                f"(vllm_parity_tolerance={self.args.vllm_parity_tolerance}). Rollouts would come from another policy. "
                "Check that vLLM serves this very base model and revision and supports its audio, or set "
                "use_vllm=False; 0 leaves this check out."
            )

    def _pool_sampled(self: Any, completion_ids: list[list[int]]) -> None:
        """Have the states of vLLM's completions pooled: by the pass for old log-probs, or by one of their own."""
        self._to_pool = True
        if self.vllm_importance_sampling_correction:
            return  # TRL always computes the old log-probs then, and first
        prompts, completions = [prompt.ids for prompt in self._prompts], completion_ids
        device, value = self.accelerator.device, self._tokenizer.pad_token_id
        ids, masks = [], []
        for rows, side in ((prompts, "left"), (completions, "right")):
            tensors = [torch.tensor(row, device=device) for row in rows]
            ids.append(pad(tensors, padding_value=value, padding_side=side))
            masks.append(pad([torch.ones_like(row) for row in tensors], padding_value=0, padding_side=side))
        batch = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            self._get_per_token_logps_and_entropies(
                self.model, torch.cat(ids, 1), torch.cat(masks, 1), ids[1].size(1), batch
            )

    def _get_per_token_logps_and_entropies(
        self: Any, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple:
        scored = super()._get_per_token_logps_and_entropies  # type: ignore[misc] # of GRPOTrainer
        if not self._to_pool:
            return scored(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        self._to_pool = False
        # The last token does not count, as when completions are sampled here: it is the end, or never fed back.
        completion = attention_mask[:, -logits_to_keep:].bool()
        counted = torch.zeros_like(attention_mask, dtype=torch.bool)
        counted[:, -logits_to_keep:] = completion & (completion.cumsum(1) < completion.sum(1, keepdim=True))
        self._pooler = StatePooler(self._states, len(input_ids), teacher_forced=counted)
        with self._pooler.attached(self._base_model().get_input_embeddings()):
            return scored(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
