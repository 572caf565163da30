"""`TARSGRPOTrainer`: GRPO in which every question is asked twice."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from .config import TARSGRPOConfig
from .data.answers import completion_text
from .grpo.alignment import choose_references, layer_indices, similarity_to_reference
from .grpo.behavior import behavior_encoder, behavior_place
from .grpo.callbacks import HealthCallback, use_twin_progress
from .grpo.kept_run import KeptRun
from .grpo.metrics import layer_metrics, twin_metrics
from .grpo.micro_batches import twins_together
from .grpo.preparing import (
    own_settings,
    prepare_training,
    refuse_several_turns,
    suppress,
    usable_questions,
)
from .grpo.resuming import ResumableSampler
from .grpo.rewards import rewards_and_weights
from .grpo.rollout import Rollout, Row
from .grpo.sharing import PromptSharing
from .grpo.teacher import WrittenTeacher
from .grpo.twins import reference_candidates
from .grpo.vllm import SpeechGeneration, clips_of, engine_for, pool_without_old_logps
from .models.hooks import StatePooler, without_dropout
from .models.prefill import prompts_once
from .models.prompting import base_of, twin_prompt
from .models.sharding import ClipEncoder


class TARSGRPOTrainer(KeptRun, GRPOTrainer):
    """Trajectory Alignment for Reasoning in Speech (TARS, ACL 2026, arXiv 2601.05543).

    The only changes with respect to `GRPOTrainer` are:

    1. The samplers repeat a question for both twins: `num_generations` rows, the first half spoken, the second half
       written. They lie as two ordinary TRL groups side by side, so TRL's group mean is the mean over one modality of
       one question (paper, advantage per modality).
    2. Each row is tokenised, sampled, scored and updated under its own prompt.
    3. Clips are encoded once a generation and put into the token embeddings of every forward pass of their rows
       (`models.hooks`, `models.sharding`); with `use_vllm` they go to vLLM, too (`grpo.vllm`).
    4. Hidden states are pooled while completions are sampled (with vLLM, while the old log-probs are computed), and two
       more reward columns, R_rep and R_beh, compare a spoken completion with a correct written one; they are NaN on
       written rows.
    5. With `distillation_weight` the written prompt is read once more, by the model as it was or is, with the spoken
       completions behind it: what it thinks of each token joins the advantages in the update (`grpo.teacher`).
    6. Metrics by modality, the gap, and what each reward contributes to the advantages.
    7. Settings are copied, not changed; `run.json` says how a run was made, checkpoints carry a manifest, and a
       `Publisher` among the callbacks writes the card (`grpo.kept_run`). Nothing is sent unless asked.

    Arguments are those of `GRPOTrainer`, without tools, environments and rollout functions. `train_dataset` and
    `eval_dataset` hold rows as in `tars_trl.data`: `prompt`, the conversation in its written form, and `audio`, its
    last question spoken. Clips are opened wherever their rows say: `load_questions` is what refuses paths that lead out
    of a data set's folder. With no `peft_config` the method's LoRA is used (`lora_r`, `lora_alpha`; `lora_r=0` trains
    the whole language model). Reward functions get a `modality` column beside the data set's, and no audio; with
    `distillation_weight` there need be none.

    Raises:
        ValueError: settings, rewards or data that cannot work, before anything is trained.
    """

    _buffered_inputs: Any  # of TRL: the micro-batches of a generation

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: TARSGRPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        *,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        refuse_several_turns(kwargs)
        args = own_settings(args if args is not None else TARSGRPOConfig("tars-output"))
        reward_funcs, args.reward_weights = rewards_and_weights(reward_funcs, args)
        train_dataset = usable_questions(train_dataset, args, args.curriculum, reward_funcs)
        eval_dataset = usable_questions(eval_dataset, args, reward_funcs=reward_funcs)
        if args.aligned and args.behavior_weight:
            behavior_place(args.behavior_model)
        model, self.architecture, peft_config = prepare_training(model, args, quantization_config, peft_config)
        # A placeholder in a completion would be taken for audio by the next forward pass.
        suppress(args, self.architecture.unsampled_tokens(base_of(model)))
        with engine_for(self.architecture, model, args):
            super().__init__(
                model, reward_funcs, args, train_dataset, eval_dataset, processing_class, peft_config=peft_config,
                **kwargs,
            )  # fmt: skip
        if args.modalities == "both":  # from here on a TRL group is one twin; the samplers still repeat for both
            self.num_generations //= 2
            self.num_generations_eval //= 2
        self._rollout = Rollout([], [])
        self._encoder = ClipEncoder(self.architecture, self.accelerator, args.freeze_audio, args.modalities)
        self._clips: Sequence[Any] = []  # of the rows that are sampled or scored next
        self._layers = self.architecture.state_modules(self._base)
        self._sharing = PromptSharing(self.model, self.accelerator, self._layers, args.shared_prefix)
        self._teacher = WrittenTeacher(args, self.accelerator, self.reward_func_names)
        self._taught: dict[str, Any] | None = None  # the micro-batch of an update, while it is scored
        self._rep_layers = layer_indices(args.rep_layers, len(self._layers))
        self._behavior = behavior_encoder(args, self.accelerator.device)
        if self.use_vllm:
            self.vllm_generation = SpeechGeneration.take_over(self)
        use_twin_progress(self)
        if args.health_steps:
            self.add_callback(HealthCallback(args.health_steps))
        self._show_trainable()

    @property
    def _group_size(self) -> int:
        """Rows of a question, both twins together."""
        return (None if self.model.training else self.args.num_generations_eval) or self.args.num_generations

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
        repeats = self.args.num_generations_eval or self.args.num_generations
        return RepeatSampler(data_source=eval_dataset, mini_repeat_count=repeats, seed=self.args.seed)

    # ---- 2. and 3. Prompts and audio -------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._sharing.on and self._buffered_inputs is not before:
            self._buffered_inputs = twins_together(self._buffered_inputs)
            return self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        first = self.accelerator.process_index * len(inputs)
        self._rollout = rollout = Rollout.prepare(
            inputs, first, self._group_size, self.args.modalities, self.architecture, self.processing_class,
            written=self._teacher.on, **self.chat_template_kwargs,
        )  # fmt: skip
        if self._encoder.together:
            self._encoder.spare = twin_prompt(self.architecture, self.processing_class, inputs[0], "speech").features
        rollout.clips = rollout.features
        with torch.no_grad(), without_dropout(self.model):
            if self.args.freeze_audio:
                rollout.clips = self._encoder.encode(self.model, rollout.features)
            if self.use_vllm:
                self.vllm_generation.check_parity(self, rollout)
            self._clips = rollout.clips
            output = super()._generate_and_score_completions(rollout.rows)
            score = partial(self._sharing.score, super()._get_per_token_logps_and_entropies)
            output |= self._teacher.read(
                score, self.model, rollout, output, self.reward_weights, self._group_size, self._tokenizer.pad_token_id
            )
        return {**output, "audio": rollout.clips}

    def _embeddings(self) -> Sequence[Tensor | None]:
        """Audio embeddings of the rows at hand; encoded here where the audio side is trained."""
        return self._clips if self.args.freeze_audio else self._encoder.encode(self.model, self._clips)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        return [prompt.ids for prompt in self._rollout.prompts], None, {}

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._clips = inputs["audio"]
        self._taught = inputs = dict(inputs)  # whose advantages TRL reads once its rows are scored
        loss = super()._compute_loss(model, inputs)
        self._taught = None
        return loss

    # ---- 4. Alignment ----------------------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids: list, images: Any, *args: Any, **kwargs: Any) -> tuple:
        rollout = self._rollout
        if self.use_vllm:  # which takes the clips where TRL has images
            sampled = super()._generate_single_turn(prompt_ids, clips_of(rollout), *args, **kwargs)
            rollout.lengths = [len(ids) for ids in sampled[0]] if self.args.pools_states else None
            # TRL computes the old log-probs with this correction only; their pass then comes next.
            if self.args.pools_states and not self.vllm_importance_sampling_correction:
                pool_without_old_logps(self, rollout, sampled[0])
            return sampled
        if self.args.pools_states:
            rollout.pooler = StatePooler(self._layers, len(prompt_ids), self.eos_token_ids)
        with prompts_once(self._base, self._embeddings(), rollout.pooler, one_pass=self._encoder.together):
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> tuple:
        scored = super()._get_per_token_logps_and_entropies
        states: list[Tensor] = []
        kept = states if self._taught is not None and self._teacher.keeps_states else None
        result = self._sharing.score(scored, self._embeddings, self._rollout, model, *args, kept=kept, **kwargs)
        if self._taught is not None:
            with self.accelerator.autocast():
                self._log_metrics(self._teacher.teach(self._taught, result[0], states, self._base))
        return result

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """TRL's rewards (N over all processes, functions), with the alignment columns filled in and metrics logged."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rollout.rewards = rewards  # alignment columns are filled in below
        for column in ("modality", "key"):
            self._log_completion_extra(column, [row[column] for row in inputs])
        ending = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        lengths = self._gather([len(ids) for ids in completion_ids_list])
        clipped = self._gather([ids[-1] not in ending for ids in completion_ids_list]).bool()
        if self.args.aligned:
            complete = self._gather([not ending.issuperset(ids) for ids in completion_ids_list]).bool()
            if self.mask_truncated_completions:
                complete &= ~clipped
            texts = [completion_text(completion) for completion in completions]
            self._align(rewards, inputs, texts, [len(ids) - 1 for ids in completion_ids_list], complete)
        self._log_metrics(
            twin_metrics(
                rewards, self.reward_weights, self.reward_func_names, lengths, clipped,
                group_size=self._group_size, modalities=self.args.modalities, correct=self.args.reference_reward,
            )
        )  # fmt: skip
        return rewards

    def _align(
        self, rewards: Tensor, inputs: list[Row], texts: list[str], pooled_tokens: list[int], complete: Tensor
    ) -> None:
        """Fill the alignment columns of `rewards` in place, identically on every process.

        A spoken completion that is empty, or truncated while such are masked, has no reference and so earns 0; as a
        written one it is no reference. A spoken row that no task reward scored stays NaN.
        """
        group, columns = self._group_size, {}
        correct = rewards[:, self.reward_func_names.index(self.args.reference_reward)] >= 1  # NaN is not correct
        candidates = reference_candidates((correct & complete).tolist(), group)
        states = None
        if self.args.pools_states:
            assert self._rollout.pooler is not None
            hidden_size = self._base.config.get_text_config().hidden_size
            pooled = self._rollout.pooler.pooled(pooled_tokens, hidden_size)
            states = self.accelerator.gather(pooled.to(self.accelerator.device).contiguous())
        references = choose_references(
            candidates, gather_object([row["key"] for row in inputs])[::group], group, how=self.args.reference,
            seed=self.args.seed, step=self.state.global_step, states=states, layers=self._rep_layers,
        )  # fmt: skip
        references = [row if complete[number] else -1 for number, row in enumerate(references)]

        if states is not None:
            similarity = similarity_to_reference(states, references)  # (N, L)
            columns["representation_alignment"] = similarity[:, self._rep_layers].mean(-1)
            self._log_metrics(layer_metrics(similarity, references))
        if self._behavior is not None:
            used = {row for pair in enumerate(references) if pair[1] >= 0 for row in pair}
            first = self.accelerator.process_index * len(texts)
            needed = [number for number in range(len(texts)) if first + number in used]
            embeddings = self._behavior.encode_needed(texts, needed).to(self.accelerator.device)
            columns["behavior_alignment"] = similarity_to_reference(self.accelerator.gather(embeddings), references)
        spoken = torch.arange(len(rewards), device=rewards.device) % group < group // 2
        filled = spoken & ~rewards.isnan().all(dim=1)
        for name, values in columns.items():
            rewards[filled, self.reward_func_names.index(name)] = values.to(rewards)[filled]
        self._log_metrics({"alignment/no_reference": sum(not rows for rows in candidates) / len(candidates)})

    # ---- 6. Metrics ------------------------------------------------------------------------------------------------

    def _gather(self, values: list) -> Tensor:
        return self.accelerator.gather(torch.tensor(values, device=self.accelerator.device))

    def _log_metrics(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
