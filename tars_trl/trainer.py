"""`TARSGRPOTrainer`: GRPO in which every question is asked twice. The only file that knows TRL's private methods."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from .config import TARSGRPOConfig
from .data.answers import completion_text
from .data.audio import TARGET_RATE, check_audio, load_audio
from .data.prompts import question_key, spoken_prompt, written_prompt
from .data.questions import ordered_by
from .grpo.alignment import best_references, compare, layer_indices
from .grpo.behavior import BehaviorEncoder
from .grpo.callbacks import HealthCallback, use_twin_progress
from .grpo.metrics import twin_metrics
from .grpo.resuming import ResumableSampler
from .grpo.twins import draw_references, modality_of, reference_candidates
from .grpo.vllm import VLLMRollouts, check_supported
from .models import Features, Prompt, architecture_of
from .models.hooks import StatePooler, last_logits_only, placed_audio
from .models.loading import load_model, method_lora
from .models.sharding import encode_together, is_spread, loaded_whole
from .record import report_trainable
from .share.cards import write_run
from .share.hub import prepare_run

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def representation_alignment(prompts: list, **kwargs: Any) -> list[None]:
    """Column of R_rep among TRL's reward functions; the trainer fills it in once references are known."""
    return [None] * len(prompts)


def behavior_alignment(prompts: list, **kwargs: Any) -> list[None]:
    """Column of R_beh among TRL's reward functions; the trainer fills it in once references are known."""
    return [None] * len(prompts)


class TARSGRPOTrainer(VLLMRollouts, GRPOTrainer):
    """Trajectory Alignment for Reasoning in Speech (TARS, ACL 2026, arXiv 2601.05543).

    The only changes with respect to `GRPOTrainer` are:

    1. The samplers repeat a question for both twins: `num_generations` rows, the first half spoken, the second half
       written. They lie as two ordinary TRL groups side by side, so TRL's group mean is the mean over one modality of
       one question (paper, advantage per modality).
    2. Each row is tokenised, sampled, scored and updated under its own prompt.
    3. Clips are encoded once a generation and put into the token embeddings of every forward pass of their rows, also
       where the parameters are spread over processes (`sharding`). With `use_vllm` they go to vLLM, too
       (`vllm_rollouts`).
    4. Hidden states are pooled while completions are sampled (with vLLM, while the old log-probs are computed), and two
       more reward columns, R_rep and R_beh, compare a spoken completion with a correct written one; they are NaN on
       written rows.
    5. Metrics by modality, and the gap.

    Arguments are those of `GRPOTrainer`. `train_dataset` and `eval_dataset` hold rows as in `tars_trl.data`: `prompt`,
    the conversation in its written form, and `audio`, its last question spoken. With no `peft_config` the method's LoRA
    is used (`lora_r`, `lora_alpha`; `lora_r=0` trains the whole language model). Reward functions get a `modality`
    column beside the data set's, and no audio.

    Raises:
        ValueError: settings, rewards or data that cannot work, before anything is trained.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: TARSGRPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        if any(value is not None for value in kwargs.values()):
            raise ValueError(
                f"{', '.join(kwargs)} cannot be used here: twins are single-turn and sampled by the trainer. "
                "Leave them out, or use trl.GRPOTrainer for tools, environments and rollout functions."
            )
        if args is None:
            args = TARSGRPOConfig("tars-output")

        if isinstance(model, str):
            model = load_model(model, args, quantization_config)
            quantization_config = None
        base = model.get_base_model() if is_peft_model(model) else model
        self.architecture = architecture_of(base.config.model_type)
        if args.use_vllm:
            check_supported(base.config.model_type)
        self.architecture.prepare(base)
        if args.freeze_audio:
            for path in self.architecture.audio_modules.values():
                base.get_submodule(path).requires_grad_(False)
        if peft_config is None and args.lora_r > 0 and not is_peft_model(model):
            peft_config = method_lora(self.architecture, args)
        if peft_config is not None or is_peft_model(model):
            if not args.freeze_audio:
                raise ValueError(
                    "freeze_audio=False has no effect beside LoRA, which freezes all but its own weights. Train the "
                    "whole model (lora_r=0), or leave freeze_audio on."
                )
        elif args.beta:
            raise ValueError(
                f"beta={args.beta} with lora_r=0 needs a second whole model, which TRL would load by the class that "
                "the checkpoint names, not the part that is trained. Use LoRA, whose reference is the model with the "
                "adapter off, or beta=0 (the method's)."
            )
        # A placeholder in a completion would be taken for audio by the next forward pass.
        suppressed = set((args.generation_kwargs or {}).get("suppress_tokens", []))
        suppressed |= set(self.architecture.unsampled_tokens(base))
        args.generation_kwargs = {**(args.generation_kwargs or {}), "suppress_tokens": sorted(suppressed)}

        reward_funcs = self._with_alignment(reward_funcs, args)
        train_dataset = self._checked(train_dataset, args)
        if args.curriculum is not None:
            train_dataset = ordered_by(train_dataset, args.curriculum)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._checked(dataset, args) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._checked(eval_dataset, args)

        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._spread = args.modalities != "text" and is_spread(self.accelerator)
        if args.modalities == "both":  # from here on a TRL group is one twin; the samplers still repeat for both
            self.num_generations //= 2
            self.num_generations_eval //= 2
        self._set_reward_weights()

        base = self._base_model()
        self._states = self.architecture.state_modules(base)
        self._rep_layers = layer_indices(args.rep_layers, len(self._states))
        self._behavior: BehaviorEncoder | None = None
        if args.aligned and args.behavior_weight:
            device = args.behavior_device or self.accelerator.device
            with loaded_whole():
                self._behavior = BehaviorEncoder(args.behavior_model, device, args.behavior_batch_size)
        self._rows: list[Row] = []  # of the generation under way, on this process
        self._prompts: list[Prompt] = []
        self._waveforms: list[list | None] = []  # as vLLM takes them
        self._spare: Features | None = None  # a clip for processes without one, where all have to encode
        self._pooler: StatePooler | None = None

        self._start_vllm(suppressed)

        use_twin_progress(self)
        if args.health_steps:
            self.add_callback(HealthCallback(args.health_steps))
        self._report_trainable()

    # ---- Set-up ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _with_alignment(reward_funcs: Any, args: TARSGRPOConfig) -> list:
        funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs] if reward_funcs else []
        if not funcs:
            raise ValueError(
                "No reward_funcs were given, so nothing can be learned. Give [accuracy_reward, format_reward]."
            )
        if args.reward_weights is not None and len(args.reward_weights) != len(funcs):
            raise ValueError(
                f"reward_weights has {len(args.reward_weights)} values for {len(funcs)} reward functions. Give one "
                "weight for each; the alignment rewards have representation_weight and behavior_weight."
            )
        if not args.aligned:
            return funcs
        names = [getattr(func, "__name__", type(func).__name__) for func in funcs]
        if args.reference_reward not in names:
            raise ValueError(
                f"reference_reward={args.reference_reward!r} is none of the reward functions ({', '.join(names)}), so "
                "no written completion could be known to be correct. Name one of them, or set representation_weight "
                "and behavior_weight to 0."
            )
        columns = ((representation_alignment, args.representation_weight), (behavior_alignment, args.behavior_weight))
        added = [(column, weight) for column, weight in columns if weight]
        if args.reward_weights is not None:
            args.reward_weights = [*args.reward_weights, *(weight for _, weight in added)]
        return [*funcs, *(column for column, _ in added)]

    def _set_reward_weights(self) -> None:
        if self.args.reward_weights is None:
            ours = {
                "format_reward": self.args.format_weight,
                "representation_alignment": self.args.representation_weight,
                "behavior_alignment": self.args.behavior_weight,
            }
            self.reward_weights = torch.tensor([float(ours.get(name, 1.0)) for name in self.reward_func_names])

    @staticmethod
    def _checked(dataset: Any, args: TARSGRPOConfig) -> Dataset:
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"The data set is a {type(dataset).__name__}; twins need one with a known length, a datasets.Dataset. "
                "Load it without streaming, for example with tars_trl.data.load_questions."
            )
        if args.modalities == "text":
            return dataset.remove_columns("audio") if "audio" in dataset.column_names else dataset
        return check_audio(dataset, max_seconds=args.max_audio_seconds, on_error=args.on_bad_audio)

    def _base_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft_model(model) else model

    def _report_trainable(self) -> None:
        if self.accelerator.is_main_process:
            report_trainable(self._base_model(), self.architecture.audio_modules, self.args.output_dir)

    def _send_telemetry(self) -> None:
        """Nothing: what runs where is nobody's business unless the user asks for it."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our card, with a quick start for speech, and `run.json`, in the place of TRL's card."""
        if self.is_world_process_zero():
            write_run(self)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """The repository to push to: private unless `hub_private_repo=False`, refused if it holds something else."""
        super().init_hf_repo(token, prepare_run(self, token, private))

    # ---- 1. Samplers -----------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return ResumableSampler(
            lambda: self.state.epoch,
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.args.num_generations,
            batch_size=self.args.generation_batch_size // self.args.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
        return RepeatSampler(data_source=eval_dataset, mini_repeat_count=self._group_size("eval"), seed=self.args.seed)

    def _group_size(self, mode: str) -> int:
        """Rows of a question, both twins together."""
        return (
            self.args.num_generations_eval or self.args.num_generations if mode == "eval" else self.args.num_generations
        )

    # ---- 2. and 3. Prompts and audio -------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        group = self._group_size("train" if self.model.training else "eval")
        first = self.accelerator.process_index * len(inputs)
        self._rows, self._prompts = [], []
        self._waveforms = []
        made: dict[tuple[int, str], tuple] = {}  # by group and modality: each is prepared once
        for number, row in enumerate(inputs):
            modality = modality_of(first + number, group, self.args.modalities)
            place = ((first + number) // group, modality)
            if place not in made:
                made[place] = self._make_prompt(row, modality)
            conversation, prompt, waveform = made[place]
            columns = {name: value for name, value in row.items() if name != "audio"}
            self._rows.append({**columns, "prompt": conversation, "modality": modality, "key": question_key(row)})
            self._prompts.append(prompt)
            self._waveforms.append(None if waveform is None else [(waveform, TARGET_RATE)])

        clips: list[Any] = [prompt.features for prompt in self._prompts]
        if self.args.modalities != "text" and (
            self._spread or (self.accelerator.num_processes > 1 and not self.args.freeze_audio)
        ):
            self._spare = self._make_prompt(inputs[0], "speech")[1].features
        with torch.no_grad(), _without_dropout(self.model):
            if self.args.freeze_audio:
                clips = self._encode(clips)
            self._check_parity(clips, self._waveforms)
        with torch.no_grad(), self._audio(clips), _without_dropout(self.model):
            output = super()._generate_and_score_completions(self._rows)
        output["audio"] = clips
        self._pooler, self._waveforms = None, []
        return output

    def _make_prompt(self, row: Row, modality: str) -> tuple[list, Prompt, np.ndarray | None]:
        """The conversation as logs and reward functions see it, what the model gets, and the clip."""
        spoken = modality == "speech"
        conversation = spoken_prompt(row["prompt"]) if spoken else written_prompt(row["prompt"])
        waveform = load_audio(row["audio"]) if spoken else None
        prompt = self.architecture.prompt(self.processing_class, conversation, waveform, **self.chat_template_kwargs)
        return spoken_prompt(row["prompt"], transcript=True) if spoken else conversation, prompt, waveform

    def _encode(self, clips: Sequence[Features | None]) -> list[Tensor | None]:
        """Audio embeddings of each row; a clip that several rows share is encoded once."""
        distinct = {id(clip): clip for clip in clips if clip is not None}
        none = None
        if self._spare is not None:
            embeddings, none = encode_together(
                self.architecture, self.accelerator, self.model, list(distinct.values()), self._spare
            )
        elif distinct:
            embeddings = self.architecture.encode(self._base_model(), list(distinct.values()))
        if not distinct:
            return [none, *[None] * (len(clips) - 1)]
        by_clip = dict(zip(distinct, embeddings, strict=True))
        return [by_clip.get(id(clip)) for clip in clips]

    @contextmanager
    def _audio(self, clips: Sequence[Any]) -> Iterator[None]:
        """Place the rows' audio into every forward pass of the block, also the reference model's (beta > 0)."""
        rows = clips if self.args.freeze_audio else self._encode(clips)
        base = self._base_model()
        token = self.architecture.audio_token(base)
        with placed_audio(base.get_input_embeddings(), token, rows):
            if self.ref_model is None:
                yield
            else:
                with placed_audio(self.accelerator.unwrap_model(self.ref_model).get_input_embeddings(), token, rows):
                    yield

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        return [prompt.ids for prompt in self._prompts], None, {}

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self._audio(inputs["audio"]):
            return super()._compute_loss(model, inputs)

    # ---- 4. Alignment ----------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self,
        prompt_ids: list,
        images: Any,
        multimodal_fields: dict,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        pooled = self.args.aligned and self.args.representation_weight
        if self.use_vllm:  # which takes the clips where TRL has images
            sampled = super()._generate_single_turn(
                prompt_ids, self._waveforms, multimodal_fields, num_generations, has_tool_images
            )
            if pooled:
                self._pool_sampled(sampled[0])
            return sampled
        base = self._base_model()
        with last_logits_only(base), ExitStack() as stack:
            if pooled:
                self._pooler = StatePooler(self._states, len(prompt_ids), self.eos_token_ids)
                stack.enter_context(self._pooler.attached(base.get_input_embeddings()))
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """TRL's rewards (N over all processes, functions), with the alignment columns filled in and metrics kept."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        mode = "train" if self.model.training else "eval"
        group = self._group_size(mode)
        for column in ("modality", "key"):
            self._log_completion_extra(column, [row[column] for row in inputs])

        ending = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        device = rewards.device
        lengths = self._gathered([len(ids) for ids in completion_ids_list], device)
        words = self._gathered([sum(token not in ending for token in ids) for ids in completion_ids_list], device)
        clipped = self._gathered([ids[-1] not in ending for ids in completion_ids_list], device).bool()
        if self.args.aligned:
            complete = words > 0
            if self.mask_truncated_completions:
                complete &= ~clipped
            self._align(rewards, inputs, completions, complete, group, mode)
        metrics = twin_metrics(
            rewards,
            self.reward_weights,
            self.reward_func_names,
            lengths,
            clipped,
            group_size=group,
            modalities=self.args.modalities,
            correct=self.args.reference_reward,
        )
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return rewards

    def _gathered(self, values: list, device: torch.device) -> Tensor:
        return self.accelerator.gather(torch.tensor(values, device=device))

    def _column(self, rewards: Tensor, name: str) -> Tensor:
        return rewards[:, self.reward_func_names.index(name)]

    def _align(
        self, rewards: Tensor, inputs: list[Row], completions: list, complete: Tensor, group: int, mode: str
    ) -> None:
        """Fill the alignment columns of `rewards` in place, identically on every process.

        A spoken completion that is empty, or truncated while such are masked, has no reference and so earns 0; as a
        written one it is no reference. A spoken row that no task reward scored stays NaN.
        """
        correct = self._column(rewards, self.args.reference_reward) >= 1  # NaN is not correct
        keys = gather_object([row["key"] for row in inputs])[::group]
        candidates = reference_candidates((correct & complete).tolist(), group)
        scored = ~rewards.isnan().all(dim=1)
        spoken = torch.arange(len(rewards), device=rewards.device) % group < group // 2
        states = self._all_states(len(inputs)) if self.args.representation_weight else None

        if self.args.reference == "best":
            references = best_references(states, candidates, group, self._rep_layers)
        else:
            step = self.state.global_step
            how = self.args.reference
            references = draw_references(candidates, keys, group, seed=self.args.seed, step=step, how=how)
        references = [row if complete[number] else -1 for number, row in enumerate(references)]

        columns = {}
        if states is not None:
            similarity = compare(states, references)  # (N, L)
            columns["representation_alignment"] = similarity[:, self._rep_layers].mean(-1)
            self._log_layers(similarity, references, mode)
        if self._behavior is not None:
            embeddings = self._all_embeddings(self._behavior, completions, references)
            columns["behavior_alignment"] = compare(embeddings, references)
        for name, values in columns.items():
            column = self._column(rewards, name)
            column[spoken & scored] = values.to(rewards)[spoken & scored]
        without = sum(not rows for rows in candidates) / len(candidates)
        self._metrics[mode]["alignment/no_reference"].append(without)

    def _all_states(self, num_rows: int) -> Tensor:
        """(N, L, H) pooled states of the rows of all processes."""
        if self._pooler is None or self._pooler.sums is None:  # every completion on this process was empty
            size = self._base_model().config.get_text_config().hidden_size
            states = torch.zeros(num_rows, len(self._states), size, device=self.accelerator.device)
        else:
            states = self._pooler.pooled()[0]
        return self.accelerator.gather(states.contiguous())

    def _all_embeddings(self, encoder: BehaviorEncoder, completions: list, references: list[int]) -> Tensor:
        """(N, D) embeddings of the rows of all processes; zero for those that no comparison needs."""
        first = self.accelerator.process_index * len(completions)
        used = {row for pair in enumerate(references) if pair[1] >= 0 for row in pair}
        local = [number for number in range(len(completions)) if first + number in used]
        embeddings = torch.zeros(len(completions), encoder.dimension, device=self.accelerator.device)
        if local:
            texts = [completion_text(completions[number]) for number in local]
            embeddings[local] = encoder.encode(texts).to(embeddings)
        return self.accelerator.gather(embeddings)

    # ---- 5. Metrics ------------------------------------------------------------------------------------------------

    def _log_layers(self, similarity: Tensor, references: list[int], mode: str) -> None:
        compared = [number for number, reference in enumerate(references) if reference >= 0]
        if compared:
            by_layer = similarity[compared].mean(0)
            for name, part in zip(("first", "middle", "last"), by_layer.tensor_split(3), strict=True):
                if len(part):
                    self._metrics[mode][f"alignment/layer_similarity/{name}_third"].append(part.mean().item())


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off while completions are sampled and scored: the policy that is rewarded is the one without noise."""
    active = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()
