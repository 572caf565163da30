"""Rollouts by vLLM: TRL's generation layer, taught to hear.

TRL starts the engine (colocate) or the client (server), gathers, samples and syncs weights; it knows images only.
`SpeechGeneration` adds what audio needs, and checks before the first step that vLLM and the trained model are the same
policy. R_rep's states come from the pass that computes the old log-probs, or from `pool_without_old_logps`.

Tested with vLLM 0.22.1 on CPUs (`make test-vllm`); what a CPU cannot show, with a stand-in.
"""

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate.utils import is_peft_model, set_seed
from safetensors.torch import save_file
from torch import Tensor
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration, empty_cache
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad

from ..data.audio import TARGET_RATE
from ..errors import EngineError
from ..models import SpeechLLM
from ..models.prompting import base_of, heard
from ..models.vllm import (
    LEAST_BIAS,
    check_prompts,
    check_supported,
    engine_options,
    merged_parameters,
    send_weights,
    with_one_placeholder,
)
from .resuming import last_checkpoint
from .rollout import Rollout

PARITY_QUESTIONS = 4  # rows of each process
PARITY_TOKENS = 32
SHARD = 1 << 30  # bytes of a file
TIMEOUT = (10.0, 1800.0)
"""Most seconds that a server is waited for, to be reached and to answer: one that hangs ends the run, too."""
Clip = tuple[np.ndarray, int]
"""Waveform and its rate in Hz, as vLLM takes audio."""


@contextmanager
def engine_for(architecture: SpeechLLM, model: Any, args: Any) -> Iterator[None]:
    """Has TRL start an engine of this process as `engine_options` say; TRL 1.16 has no setting for them.

    It computes in the type that the trainer's passes compute in.

    Raises:
        SettingError: vLLM has no implementation of the model.
    """
    base = base_of(model)
    if args.use_vllm:
        check_supported(architecture, base.config.model_type, "use_vllm=True")
    if not args.use_vllm or not hasattr(vllm_generation, "LLM"):  # vLLM is not installed: TRL tells
        yield
        return
    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else str(base.dtype).removeprefix("torch.")
    start, client = vllm_generation.LLM, vllm_generation.VLLMClient

    def start_empty(*, quantization: str | None = None, **options: Any) -> Any:
        if quantization is None:
            options |= engine_options(architecture, dtype)
        return start(quantization=quantization, **options)

    vllm_generation.LLM, vllm_generation.VLLMClient = start_empty, SpeechClient
    try:
        yield
    finally:
        vllm_generation.LLM, vllm_generation.VLLMClient = start, client


class SpeechClient(VLLMClient):
    """TRL's client of a server, which also sends it clips, and weights through files to one that has no other way."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.session.request = partial(self.session.request, timeout=TIMEOUT)  # TRL 1.16 waits for ever
        self.by_files = False

    def init_communicator(self, device: Any = 0) -> None:
        """Agree on how weights are sent: as the server was told (`--weight-transfer-config`), else through files."""
        self.by_files = self.get_server_info().get("weight_transfer_config") is None
        if not self.by_files:
            super().init_communicator(device)

    def update_named_params(self, metadata: list, named_params: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the server's weights; files are left for it in a temporary folder, which it has to see, too."""
        if not self.by_files:
            super().update_named_params(metadata, named_params)
            return
        with TemporaryDirectory() as folder:
            shard: dict[str, Tensor] = {}
            for number, (name, tensor) in enumerate(named_params):
                shard[name] = tensor.detach().cpu().contiguous()
                if number + 1 == len(metadata) or sum(kept.nbytes for kept in shard.values()) >= SHARD:
                    save_file(shard, Path(folder, f"weights-{number:05d}.safetensors"))
                    shard = {}
            asked = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self._post(f"{self.base_url}/collective_rpc", json=asked)

    def image_features(self, images: list[list[Clip] | None], max_concurrent_requests: int = 16) -> list[dict | None]:
        """What the server's processor makes of each clip, where TRL has images.

        A server generates from token ids or from messages, never from ids and media. So a clip is first sent in a
        message of its own (as 32-bit float, losslessly), and the features that come back are paired with our tokens.

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
            response = self.session.post(
                f"{self.base_url}/v1/chat/completions/render",
                json={"model": self.model, "messages": [message], "max_tokens": 1},
            )
            if response.status_code != 200:
                raise RuntimeError(
                    f"The vLLM server at {self.base_url} did not process a clip of {len(waveform) / rate:.1f} s: "
                    f"{response.status_code}, {response.text[:500]}. Audio goes through /v1/chat/completions/render; "
                    "from vLLM 0.30 on start the server with --enable-scale-out."
                )
            return response.json()["features"]

        with ThreadPoolExecutor(max_concurrent_requests) as executor:
            return list(executor.map(send, images))


class SpeechGeneration(VLLMGeneration):
    """The engine or client that TRL has started, with audio, checkpoint names and checked prompts."""

    architecture: SpeechLLM
    audio_token: int
    suppressed: list[int]
    parity_checked: bool
    output_dir: str

    @classmethod
    def take_over(cls, trainer: Any) -> "SpeechGeneration":
        """What a trainer's generation holds, as `GRPOTrainer` has started it, in an object of this class."""
        generation, architecture = trainer.vllm_generation, trainer.architecture
        base = base_of(trainer.accelerator.unwrap_model(trainer.model))
        speech = cls.__new__(cls)
        speech.__dict__.update(generation.__dict__)
        speech.architecture, speech.audio_token = architecture, architecture.audio_token(base)
        speech.suppressed = trainer.args.generation_kwargs["suppress_tokens"]
        speech.parity_checked, speech.output_dir = False, trainer.args.output_dir
        # vLLM knows no `suppress_tokens`.
        options = {name: value for name, value in generation.generation_kwargs.items() if name != "suppress_tokens"}
        bias = {**dict.fromkeys(speech.suppressed, LEAST_BIAS), **options.get("logit_bias", {})}
        speech.generation_kwargs = {**options, "logit_bias": bias, "stop_token_ids": list(trainer.eos_token_ids)}
        if speech.mode == "colocate":
            set_seed(trainer.args.seed, device_specific=True)  # the engine has set its own, and draws from the same
            speech.llm.generate = partial(_with_audio, speech.llm.generate)
        return speech

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return self.architecture.vllm_parameter(super()._fix_param_name_to_vllm(name, extra_prefixes))

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        if not is_peft_model(self.model) or self._dist.is_fsdp or self._dist.is_zero3:
            yield from super()._iter_named_params()
            return
        for name, tensor in merged_parameters(self.model):
            yield self._fix_param_name_to_vllm(name), tensor

    def sync_weights(self) -> None:
        """As TRL's, which for an engine in this process is left to vLLM (see `send_weights`)."""
        with self._failures_told():
            if self.mode == "server":
                return super().sync_weights()
            if self.enable_sleep_mode:
                empty_cache()
                self.llm.wake_up(tags=["weights"])
                self._llm_weights_sleeping = False
            send_weights(self.llm, self._iter_named_params())

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Say what to do when the engine or the server has failed."""
        try:
            yield
        except ValueError:  # something that it, or this class, has refused
            raise
        except Exception as error:  # whatever an engine, its process or an HTTP client raises
            last = last_checkpoint(self.output_dir)
            go_on = f"Start it again with --resume_from_checkpoint {last}." if last else "There is no checkpoint yet."
            raise EngineError(
                f"vLLM ({self.mode}) has failed, {type(error).__name__}: {error}. The run cannot go on without it. "
                f"See to what ended it (its own log is above, or at the server). {go_on}"
            ) from error

    def generate(
        self, prompts: list[list[int]], images: list | None, num_generations: int, profiler: Any = None
    ) -> tuple:
        """As TRL's, with `[(waveform, rate)]` or None for each row in place of images.

        An engine gets one placeholder and the waveform, and expands the placeholder itself; a server gets the expanded
        prompt with the features it has made of the waveform. Either way its tokens have to be ours.

        Raises:
            ValueError: prompts that came back differ from those that were meant.
            EngineError: the engine or the server has failed.
        """
        clips = images if images is not None and any(clip is not None for clip in images) else None
        with self._failures_told():
            if self.mode == "server":  # every process has to hand on a list, or none: TRL gathers them
                return super().generate(prompts, clips, num_generations, profiler)
            sent = [with_one_placeholder(ids, self.audio_token) for ids in prompts]
            returned, completions, logprobs, tokens = super().generate(sent, clips, num_generations, profiler)
        check_prompts(prompts, returned, self.audio_token)
        return prompts, completions, logprobs, tokens

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
        logps = logits.log_softmax(-1)
        best = logps.max(-1)
        chosen = logps.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
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
