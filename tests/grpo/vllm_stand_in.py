"""A vLLM in small, for what the real one cannot be made to do on a CPU: be wrong, and sleep.

Signatures and input schema are vLLM 0.22.1's. It computes features, positions and probabilities with transformers' own
forward pass, so what comes out is right only if what went in was.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(kw_only=True)
class SamplingParams:
    """Fields of `vllm.SamplingParams`, and its ranges for those that are used."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: int = 0
    structured_outputs: object = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None

    def __post_init__(self):
        assert self.n >= 1 and self.temperature >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        assert isinstance(self.top_k, int) and self.top_k >= -1 and self.repetition_penalty > 0
        assert self.max_tokens is None or self.max_tokens >= 1
        assert all(isinstance(token, int) for token in self.stop_token_ids or [])
        assert all(isinstance(token, int) and -100 <= bias <= 100 for token, bias in (self.logit_bias or {}).items())


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass
class Engine:
    """Weights, processor and sampler. `deaf`, `forgetful`, `stretch` and `shift` are ways to be wrong."""

    model: torch.nn.Module
    processor: object
    deaf: bool = False  # takes the placeholder's own embedding for the clip
    forgetful: bool = False  # ignores weights that it is sent
    stretch: int = 0  # counts so many audio tokens too many
    shift: float = 0.0  # is added to the log-probs it reports
    received: list = field(default_factory=list)
    loaded: set = field(default_factory=set)
    features: dict = field(default_factory=dict)

    def __post_init__(self):
        self.model.eval()
        self.names = {f"thinker.{stored}": name for stored, name in stored_names(self.model).items()}
        self.audio_token = self.model.config.audio_token_id
        self.generator = torch.Generator().manual_seed(0)

    def load_weights(self, weights):
        """Names as in the hub's Omni checkpoint; anything else is an error, as in vLLM."""
        parameters = dict(self.model.named_parameters())
        for name, tensor in weights:
            parameter = parameters[self.names[name]]
            assert parameter.shape == tensor.shape
            self.loaded.add(name)
            if not self.forgetful:
                parameter.data.copy_(tensor)

    def hear(self, item):
        """Features of one audio item of vLLM's schema."""
        waveform, rate = item if isinstance(item, tuple) else (item, 16_000)
        assert isinstance(waveform, np.ndarray) and waveform.ndim == 1 and rate == 16_000
        key = hashlib.sha1(waveform.tobytes()).hexdigest()
        if key not in self.features:
            extractor = self.processor.feature_extractor
            made = extractor(waveform, sampling_rate=rate, return_attention_mask=True, return_tensors="pt")
            length = int(made["attention_mask"].sum())
            tower = self.model.model.audio_tower
            tokens = int(tower._get_feat_extract_output_lengths(torch.tensor(length))[1])
            self.features[key] = (made["input_features"][:, :, :length], tokens + self.stretch)
        return key, *self.features[key]

    @torch.no_grad()
    def sample(self, ids, features, params):
        """One completion: token ids, and at each place the log-prob of the token after all processing."""
        assert params.repetition_penalty == 1 and params.top_p == 1 and params.top_k <= 0 and params.min_p == 0
        bias = torch.zeros(self.model.config.get_text_config().vocab_size)
        for token, value in (params.logit_bias or {}).items():
            bias[token] = value
        audio = {}
        if features is not None and not self.deaf:
            mask = torch.ones(1, features.size(-1), dtype=torch.long)
            audio = {"input_features": features, "feature_attention_mask": mask}
        completion, logprobs = [], []
        while len(completion) < params.max_tokens:
            row = torch.tensor([ids + completion])
            logits = self.model(input_ids=row, attention_mask=torch.ones_like(row), **audio).logits[0, -1] + bias
            scores = (logits / (params.temperature or 1.0)).log_softmax(-1)
            if params.temperature:
                token = int(torch.multinomial(scores.exp(), 1, generator=self.generator))
            else:
                token = int(scores.argmax())
            completion.append(token)
            rank = int((scores > scores[token]).sum()) + 1
            logprobs.append({token: Logprob(float(scores[token]) + self.shift, rank)})
            if token in (params.stop_token_ids or []):
                break
        return completion, logprobs


def stored_names(model):
    """Name of each parameter in a saved checkpoint of the thinker: transformers' own renaming, read off a file."""
    import tempfile

    from safetensors import safe_open

    values = {name: float(number) for number, (name, _) in enumerate(model.named_parameters())}
    kept = {name: parameter.data for name, parameter in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        for name, parameter in model.named_parameters():
            parameter.data = torch.full_like(parameter, values[name])
        model.save_pretrained(folder)
        for name, parameter in model.named_parameters():
            parameter.data = kept[name]
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            found = {float(file.get_tensor(key).flatten()[0]): key for key in file.keys()}  # noqa: SIM118 (no mapping)
    return {found[value]: name for name, value in values.items()}


def make_llm(engine):
    """The class `vllm.LLM`, as far as TRL calls it, with this engine inside."""

    class LLM:
        def __init__(self, model, *, tensor_parallel_size=1, gpu_memory_utilization=0.92, max_model_len=None,
                     max_num_seqs=None, enable_sleep_mode=False, model_impl="auto", distributed_executor_backend=None,
                     seed=0, max_num_batched_tokens=None, logprobs_mode="raw_logprobs", quantization=None,
                     trust_remote_code=False, hf_overrides=None, load_format="auto", dtype="auto",
                     limit_mm_per_prompt=None):  # fmt: skip
            assert logprobs_mode == "processed_logprobs" and load_format == "dummy"
            self.awake = {"weights", "kv_cache"}
            self.resets = 0

        def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
            assert method == "reload_weights" and "weights" in self.awake
            engine.load_weights(kwargs["weights_iterator"])

        def sleep(self, level=1):
            self.awake = set()

        def wake_up(self, tags=None):
            self.awake |= set(tags or ("weights", "kv_cache"))

        def reset_prefix_cache(self):
            self.resets += 1
            return True

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
            assert self.awake == {"weights", "kv_cache"} and isinstance(sampling_params, SamplingParams)
            return [self.request(prompt, sampling_params) for prompt in prompts]

        def request(self, prompt, params):
            allowed = {"prompt_token_ids", "prompt", "token_type_ids", "multi_modal_data", "mm_processor_kwargs",
                       "multi_modal_uuids", "cache_salt"}  # fmt: skip
            assert isinstance(prompt, dict) and set(prompt) <= allowed, set(prompt)
            ids = prompt["prompt_token_ids"]
            assert isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
            media = prompt.get("multi_modal_data") or {}
            assert set(media) <= {"audio", "image", "video", "vision_chunk"}, set(media)
            engine.received.append(prompt)
            features = None
            if media:
                assert set(media) == {"audio"}, "the thinker takes images, too, but these tests have none"
                _, features, tokens = engine.hear(media["audio"])
                place = ids.index(engine.audio_token)  # ValueError: no placeholder for an item
                # One placeholder is replaced for each item; further ones stay, and stand for nothing.
                ids = ids[:place] + [engine.audio_token] * tokens + ids[place + 1 :]
            if ids.count(engine.audio_token) != (tokens - engine.stretch if media else 0):
                return RequestOutput(ids, [CompletionOutput(0, [1], [{1: Logprob(0.0, 1)}])])
            sampled = [engine.sample(ids, features, params) for _ in range(params.n)]
            outputs = [CompletionOutput(number, *one) for number, one in enumerate(sampled)]
            return RequestOutput(ids, outputs)

    return LLM
