"""The twin trainer on a tiny random thinker: what is sampled, scored, rewarded, updated, logged and saved."""

import copy
import json
import math

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, accuracy_reward, format_reward
from tars_trl.data.audio import load_audio
from tars_trl.data.prompts import spoken_prompt, written_prompt
from tars_trl.errors import AudioError
from tars_trl.models.hooks import StatePooler
from tests.conftest import odd_reward, question, questions


def generation(trainer, numbers=(0,)):
    """One generation batch as the sampler lays it out: every question once a completion."""
    dataset = trainer.train_dataset
    return [dict(dataset[number]) for number in numbers for _ in range(trainer._group_size)]


def rollout(trainer, numbers=(0,)):
    trainer.model.train()
    return trainer._generate_and_score_completions(generation(trainer, numbers))


def fixed(trainer, completions):
    """Make `trainer` sample these token ids, in row order, pooling their states as sampling would."""

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        chosen = [list(ids) for ids in completions]
        if trainer.args.aligned and trainer.args.representation_weight:
            generator = torch.Generator().manual_seed(0)
            states = torch.randn(len(chosen), len(trainer._layers), 128, generator=generator)
            trainer._rollout.pooler = StatePooler(trainer._layers, len(chosen))
            trainer._rollout.pooler.sums = states
            trainer._rollout.pooler.counts = torch.tensor([len(ids) - 1 for ids in chosen])
        return chosen, None

    trainer._generate_single_turn = generate


def column(trainer, name):
    return list(trainer._logs["rewards"][name])


# ---- Twins ---------------------------------------------------------------------------------------------------------


def test_group_is_two_trl_groups(make_trainer):
    """Half of a question's rows are spoken, half written, and advantages are means over one of the halves."""
    trainer = make_trainer(per_device_train_batch_size=16)
    output = rollout(trainer, (0, 1))
    assert [row["modality"] for row in trainer._rollout.rows] == (["speech"] * 4 + ["text"] * 4) * 2
    assert trainer.num_generations == 4
    rewards = torch.tensor([column(trainer, name) for name in trainer.reward_func_names]).nan_to_num().T
    total = (rewards * trainer.reward_weights).sum(1)
    expected = (total.view(4, 4) - total.view(4, 4).mean(1, keepdim=True)).view(-1)
    torch.testing.assert_close(output["advantages"], expected)
    assert total.view(4, 4).mean(1)[0] != total.view(4, 4).mean(1)[1]  # one mean for both would be seen


def test_sampler_repeats_every_question_for_both_twins(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=16)
    batch = next(iter(trainer.get_train_dataloader()))
    keys = [row["key"] for row in batch]
    assert len(keys) == 16 and all(len(set(keys[start : start + 8])) == 1 for start in (0, 8))
    assert keys[0] != keys[8]


@pytest.mark.parametrize("modalities", ["both", "text", "speech"])
def test_every_row_under_its_own_prompt(make_trainer, modalities):
    """Sampled, scored and pooled under its own twin's prompt, as a forward pass of the bare model confirms.

    Under the other twin's prompt the same completion has clearly other log-probs and states.
    """
    trainer = make_trainer(modalities=modalities, num_generations=4)
    output = rollout(trainer, (2, 3))
    model, processor = trainer._base, trainer.processing_class

    def bare(row, ids, spoken):
        conversation = (spoken_prompt if spoken else written_prompt)(question(row)["prompt"])
        text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
        audio = [load_audio(question(row)["audio"])] if spoken else None
        inputs = processor(text=text, audio=audio, return_tensors="pt")
        prompt_length = inputs["input_ids"].size(1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            result = model(**inputs, output_hidden_states=True)
        scores = result.logits[0, prompt_length - 1 : -1].log_softmax(-1)
        return scores.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)

    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
            torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
            output["completion_ids"].size(1),
        )
    for number, row in enumerate(trainer._rollout.rows):
        ids = output["completion_ids"][number][output["completion_mask"][number].bool()].tolist()
        ours = logps[number, : len(ids)]
        spoken = row["modality"] == "speech"
        question_number = int(row["key"][1:])
        assert (output["audio"][number] is not None) == spoken
        torch.testing.assert_close(ours, bare(question_number, ids, spoken), rtol=0, atol=1e-4)
        assert (ours - bare(question_number, ids, not spoken)).abs().max() > 1e-2


def test_updates_use_the_rows_own_audio(make_trainer):
    """The loss's gradient is that of bare forward passes with features; with other audio it is not."""
    trainer = make_trainer(num_generations=4, lora_r=0, per_device_train_batch_size=8)
    output = rollout(trainer, (0, 3))
    inputs = {**output, "advantages": torch.randn(8, generator=torch.Generator().manual_seed(0))}

    def gradient(audio):
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        trainer._compute_loss(trainer.model, {**inputs, "audio": audio}).backward()
        return trainer._base.model.language_model.layers[0].self_attn.q_proj.weight.grad.clone()

    own = gradient(output["audio"])
    total = inputs["num_items_in_batch"]
    trainer.model.zero_grad()
    model, processor = trainer._base, trainer.processing_class
    for number, row in enumerate(trainer._rollout.rows):
        ids = output["completion_ids"][number][output["completion_mask"][number].bool()].tolist()
        spoken = row["modality"] == "speech"
        original = question(int(row["key"][1:]))
        conversation = (spoken_prompt if spoken else written_prompt)(original["prompt"])
        text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
        features = processor(text=text, audio=[load_audio(original["audio"])] if spoken else None, return_tensors="pt")
        width = features["input_ids"].size(1)
        features["input_ids"] = torch.cat([features["input_ids"], torch.tensor([ids])], 1)
        features["attention_mask"] = torch.ones_like(features["input_ids"])
        scores = model(**features).logits[0, width - 1 : -1].log_softmax(-1)
        logps = scores.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        (-(logps - logps.detach()).exp() * inputs["advantages"][number]).sum().div(total).backward()
    bare = model.model.language_model.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(own / bare.abs().max(), bare / bare.abs().max(), rtol=0, atol=1e-4)
    other = gradient([clip if clip is None else clip.flip(0) for clip in output["audio"]])
    assert (other - own).abs().max() > 1e-2 * own.abs().max()


def test_clips_are_encoded_once_a_question(make_trainer, monkeypatch):
    """A generation of two questions encodes two clips, and the update encodes none."""
    trainer = make_trainer(per_device_train_batch_size=16)
    encoded = []
    original = type(trainer.architecture).encode
    monkeypatch.setattr(
        type(trainer.architecture),
        "encode",
        lambda self, model, clips: encoded.append(len(clips)) or original(self, model, clips),
    )
    output = rollout(trainer, (0, 1))
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    assert encoded == [2]


def test_alignment_costs_no_forward_pass(make_trainer):
    """Every token goes through the decoder once while sampling: pooling adds no pass, prompts are not sent again."""
    counts = []
    for weight in (0.0, 1.0):
        trainer = make_trainer(representation_weight=weight, behavior_weight=0.0)
        passes = []
        layer = trainer._layers[0]
        handle = layer.register_forward_hook(lambda *_args, passes=passes: passes.append(1))
        torch.manual_seed(0)
        rollout(trainer)
        handle.remove()
        counts.append(len(passes))
    assert counts[0] == counts[1]


# ---- Rewards and references ----------------------------------------------------------------------------------------


def words(trainer, *texts):
    """Token ids of completions, each ended."""
    end = trainer.eos_token_ids[0]
    return [[*trainer._tokenizer(text)["input_ids"], end] for text in texts]


def starts_with_yes(completions, **kwargs):
    return [float(completion[0]["content"].startswith("yes")) for completion in completions]


def test_alignment_columns(make_trainer):
    """Spoken rows get the cosine with a correct written completion of their question; written rows get NaN."""
    trainer = make_trainer(starts_with_yes, per_device_train_batch_size=16)
    said = ["no", "yes a", "no b", "yes", "no", "yes c", "no", "no d"]  # question 0 has one correct written one
    fixed(trainer, words(trainer, *said, *["no"] * 8))  # question 1 has none
    rollout(trainer, (0, 1))
    rep, beh = column(trainer, "representation_alignment"), column(trainer, "behavior_alignment")
    states = trainer_states(16, len(trainer._layers))
    vectors = trainer._behavior.encode(said)
    for row in range(4):
        expected = torch.cosine_similarity(states[row], states[5], dim=-1).mean().item()
        assert rep[row] == pytest.approx(expected, abs=1e-6)
        assert beh[row] == pytest.approx(torch.cosine_similarity(vectors[row], vectors[5], dim=0).item(), abs=1e-6)
    assert all(map(math.isnan, rep[4:8] + beh[4:8] + rep[12:] + beh[12:]))
    assert rep[8:12] == beh[8:12] == [0.0] * 4
    assert trainer._metrics["train"]["alignment/no_reference"] == [0.5]


def trainer_states(rows, layers):
    return torch.randn(rows, layers, 128, generator=torch.Generator().manual_seed(0))


def test_best_reference_and_chosen_layers(make_trainer):
    trainer = make_trainer(starts_with_yes, reference="best", rep_layers=[0, 2])
    fixed(trainer, words(trainer, *["no"] * 4, "yes a", "no", "yes b", "yes c"))
    rollout(trainer)
    states = trainer_states(8, len(trainer._layers))[:, [0, 2]]
    rep = column(trainer, "representation_alignment")
    for row in range(4):
        best = max(torch.cosine_similarity(states[row], states[other], dim=-1).mean().item() for other in (4, 6, 7))
        assert rep[row] == pytest.approx(best, abs=1e-6)


def test_weights_and_their_sum(make_trainer):
    trainer = make_trainer(representation_weight=0.7, behavior_weight=0.3)
    assert trainer.reward_func_names == [
        "odd_reward", "format_reward", "representation_alignment", "behavior_alignment",
    ]  # fmt: skip
    torch.testing.assert_close(trainer.reward_weights, torch.tensor([1.0, 0.5, 0.7, 0.3]))
    own = make_trainer(reward_weights=[2.0, 3.0])
    torch.testing.assert_close(own.reward_weights, torch.tensor([2.0, 3.0, 1.0, 1.0]))


def test_zero_weights_turn_the_terms_and_their_cost_off(make_trainer):
    trainer = make_trainer(representation_weight=0, behavior_weight=0, behavior_model="not/there")
    rollout(trainer)
    assert trainer.reward_func_names == ["odd_reward", "format_reward"]
    assert trainer._behavior is None and trainer._rollout.pooler is None
    only_behavior = make_trainer(representation_weight=0)
    rollout(only_behavior)
    assert only_behavior.reward_func_names[2:] == ["behavior_alignment"] and only_behavior._rollout.pooler is None


def test_reward_functions_see_modality_and_no_audio(make_trainer):
    seen = {}

    def spy_reward(prompts, completions, completion_ids, **kwargs):
        seen.update(kwargs, prompts=prompts, completion_ids=completion_ids)
        return [1.0] * len(completions)

    rollout(make_trainer(spy_reward))
    assert seen["modality"] == ["speech"] * 4 + ["text"] * 4
    assert seen["answer_index"] == [0] * 8 and len(seen["completion_ids"]) == 8
    assert "audio" not in seen
    words = question(0)["question"]
    assert seen["prompts"][0][1]["content"] == [{"type": "audio", "text": words}]
    assert seen["prompts"][4][1]["content"] == [{"type": "text", "text": words}]


# ---- Edge cases ----------------------------------------------------------------------------------------------------


def test_no_correct_written_completion(make_trainer):
    trainer = make_trainer(starts_with_yes)
    fixed(trainer, words(trainer, "yes", *["no"] * 7))
    output = rollout(trainer)
    assert column(trainer, "representation_alignment")[:4] == [0.0] * 4
    assert column(trainer, "behavior_alignment")[:4] == [0.0] * 4
    assert output["advantages"].isfinite().all()


@pytest.mark.parametrize("twin", ["speech", "text"])
def test_all_completions_of_a_twin_truncated(make_trainer, twin):
    """Truncated completions are no references and earn no alignment; rewards and loss stay finite."""
    trainer = make_trainer(starts_with_yes, mask_truncated_completions=True)
    ids = words(trainer, *["yes"] * 8)
    cut = slice(0, 4) if twin == "speech" else slice(4, 8)
    ids[cut] = [row[:-1] for row in ids[cut]]
    fixed(trainer, ids)
    output = rollout(trainer)
    assert column(trainer, "representation_alignment")[:4] == [0.0] * 4
    assert trainer._metrics["train"]["alignment/no_reference"] == [float(twin == "text")]
    assert trainer._metrics["train"][f"{twin}/clipped_ratio"] == [1.0]
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, output).isfinite()


def test_everything_truncated_still_has_a_loss(make_trainer):
    trainer = make_trainer(starts_with_yes, mask_truncated_completions=True)
    fixed(trainer, [row[:-1] for row in words(trainer, *["yes"] * 8)])
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, output)
    loss.backward()
    assert loss == 0


def test_empty_completions(make_trainer):
    """Only an end token: no states, no alignment, no reference, even if a reward calls it correct."""

    def always_reward(completions, **kwargs):
        return [1.0] * len(completions)

    trainer = make_trainer(always_reward)
    end = [trainer.eos_token_ids[0]]
    fixed(trainer, [end, *words(trainer, "a", "b", "c"), end, end, end, end])
    rollout(trainer)
    assert column(trainer, "representation_alignment")[:4] == [0.0] * 4
    fixed(trainer, [end, *words(trainer, "a", "b", "c"), end, *words(trainer, "d"), end, end])
    rollout(trainer)
    rep = column(trainer, "representation_alignment")[-8:]
    assert rep[0] == 0.0 and all(value != 0 for value in rep[1:4])


def test_a_model_that_ends_at_once(make_trainer):
    """Sampled for real: nothing but end tokens on the whole process, so no state was ever pooled."""
    trainer = make_trainer()
    end = trainer.eos_token_ids[0]
    base = trainer._base
    suppressed = [token for token in range(base.config.get_text_config().vocab_size) if token != end]
    trainer.generation_config.suppress_tokens = suppressed
    trainer.generation_kwargs["suppress_tokens"] = suppressed
    output = rollout(trainer)
    assert output["completion_ids"].tolist() == [[end]] * 8
    assert column(trainer, "representation_alignment")[:4] == [0.0] * 4


def test_duplicated_questions_in_a_batch(make_trainer):
    """Each copy is a group of its own: own references, own means."""
    trainer = make_trainer(starts_with_yes, per_device_train_batch_size=16)
    fixed(trainer, words(trainer, *["no"] * 4, "yes", "no", "no", "no", *["no"] * 8))
    rollout(trainer, (1, 1))
    rep = column(trainer, "representation_alignment")
    assert all(value != 0 for value in rep[:4]) and rep[8:12] == [0.0] * 4


def test_questions_that_share_a_key(make_trainer):
    """Each is asked with its own text and clip."""
    data = questions(2).map(lambda row: {**row, "key": "same"})
    trainer = make_trainer(dataset=data, per_device_train_batch_size=16)
    rollout(trainer, (0, 1))
    prompts = trainer._rollout.prompts
    for spoken, read in ((0, 4), (8, 12)):
        assert prompts[spoken] is prompts[spoken + 3] and prompts[read] is prompts[read + 3]
    assert prompts[4].ids != prompts[12].ids and prompts[0].ids != prompts[8].ids


def test_settings_that_have_no_effect_or_no_reference_are_refused(make_trainer):
    with pytest.raises(ValueError, match="freeze_audio=False has no effect beside LoRA.*lora_r=0"):
        make_trainer(freeze_audio=False)
    with pytest.raises(ValueError, match="beta=0.1 with lora_r=0 needs a second whole model.*Use LoRA"):
        make_trainer(beta=0.1, lora_r=0)


def test_logits_are_made_for_the_last_token_of_a_prompt(make_trainer):
    trainer = make_trainer()
    widths = []
    trainer._base.lm_head.register_forward_hook(lambda _m, _args, output: widths.append(output.size(1)))
    rollout(trainer)
    assert widths and set(widths) == {1}


def test_placeholder_cannot_be_sampled(make_trainer):
    """A model that wants nothing but audio placeholders never gets to write one, and trains on."""
    trainer = make_trainer(max_steps=1)
    token = trainer.architecture.audio_token(trainer._base)

    def prefer_placeholder(_module, _args, output):
        if isinstance(output, torch.Tensor):
            output[..., token] += 1e4
        return output

    trainer._base.lm_head.register_forward_hook(prefer_placeholder)
    output = rollout(trainer)
    assert not (output["completion_ids"] == token).any()


def test_nan_from_a_user_reward(make_trainer):
    """NaN or None leaves the function out for that row; a spoken row that nothing scored gets no advantage."""

    def partial_reward(completions, modality, **kwargs):
        return [None, float("nan"), 1.0, 0.0, None, 1.0, 1.0, 0.0]

    trainer = make_trainer(partial_reward)
    trainer.reward_funcs[1] = lambda completions, **kwargs: [None] * len(completions)
    fixed(trainer, words(trainer, *[f"w {number}" for number in range(8)]))
    output = rollout(trainer)
    rep = column(trainer, "representation_alignment")
    assert math.isnan(rep[0]) and math.isnan(rep[1]) and not math.isnan(rep[2])
    assert output["advantages"][[0, 1, 4]].tolist() == [0.0] * 3
    assert output["advantages"].isfinite().all()
    assert trainer._metrics["train"]["speech/accuracy"] == [0.5]
    assert trainer._metrics["train"]["text/accuracy"] == [pytest.approx(2 / 3)]


def test_micro_batches_without_audio(make_trainer):
    """Rows are shuffled into micro-batches; those that are all written train like the others."""
    trainer = make_trainer(per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=2)
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)


# ---- Training ------------------------------------------------------------------------------------------------------


def test_metrics_logs_and_files_of_a_run(make_trainer, tmp_path, capsys):
    trainer = make_trainer(log_completions=True, num_completions_to_print=0, max_steps=2, report_to=["tensorboard"])
    trainer.train()
    trainer.save_state()
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][0]
    for modality in ("speech", "text"):
        for metric in ("accuracy", "format", "reward", "reward_std", "completion_length", "clipped_ratio",
                       "frac_reward_zero_std"):  # fmt: skip
            assert math.isfinite(log[f"{modality}/{metric}"]), metric
    assert log["gap/accuracy"] == pytest.approx(log["text/accuracy"] - log["speech/accuracy"])
    if log["gap/recovery_rate"] is not None:
        assert log["gap/recovery_rate"] == pytest.approx(100 * log["speech/accuracy"] / log["text/accuracy"])
    assert 0 <= log["alignment/no_reference"] <= 1
    assert {f"alignment/layer_similarity/{part}_third" for part in ("first", "middle", "last")} <= set(log)
    assert {"rewards/representation_alignment/mean", "rewards/behavior_alignment/mean"} <= set(log)

    table = pd.read_parquet(tmp_path / "out" / "completions" / "completions_00001.parquet")
    assert table["modality"].tolist() == ["speech"] * 4 + ["text"] * 4
    assert table["key"].nunique() == 1 and "audio" not in table
    assert (tmp_path / "out" / "completions" / "completions_00001.parquet").stat().st_size < 50_000

    trainable = {row["component"]: row for row in json.loads((tmp_path / "out" / "run.json").read_text())["trainable"]}
    assert trainable["language model, LoRA"]["trainable"] == trainable["total"]["trainable"] > 0
    assert trainable["audio tower"]["trainable"] == trainable["audio projector"]["trainable"] == 0
    assert "language model, LoRA" in capsys.readouterr().out

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "out").rglob("events.out.*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert {"train/gap/accuracy", "train/speech/accuracy"} <= set(accumulator.Tags()["scalars"])


def test_wandb_gets_the_twins_metrics_and_no_waveform(make_trainer, monkeypatch, tmp_path):
    """Offline, with the completions table: every value that reaches wandb is small."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = {}
    trainer = make_trainer(report_to=["wandb"], log_completions=True, num_completions_to_print=0, max_steps=1)
    original = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, data, **options: logged.update(data) or original(run, data))
    try:
        trainer.train()
    finally:
        wandb.finish()
    assert {"train/gap/accuracy", "train/speech/accuracy", "train/text/reward"} <= set(logged)
    assert "audio" not in logged["completions"].columns
    assert len(str(logged["completions"].data)) < 20_000


def test_checkpoints_open(make_trainer, tiny, tmp_path):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert type(AutoProcessor.from_pretrained(checkpoint)).__name__ == "Qwen2_5OmniProcessor"
    opened = PeftModel.from_pretrained(copy.deepcopy(tiny[0]), checkpoint)
    assert opened.peft_config["default"].r == 8


def test_evaluation_during_training(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=1, eval_dataset=questions(3), per_device_eval_batch_size=8,
                           num_generations_eval=4)  # fmt: skip
    trainer.train()
    assert any("eval_speech/accuracy" in log and "eval_gap/accuracy" in log for log in trainer.state.log_history)


def test_text_only_equals_trl(tiny, tmp_path, make_trainer):
    """Text-only training is GRPOTrainer, step for step: same completions, losses and parameters."""
    model, processor = tiny
    twin = copy.deepcopy(model)
    ours = make_trainer(
        modalities="text", max_steps=4, num_generations=4, lora_r=0, warmup_steps=0, shared_prefix="never"
    )
    ours.train()

    def data():
        return questions().remove_columns("audio")

    derived = ("steps_per_generation", "warmup_ratio")
    names = [field for field in GRPOConfig.__dataclass_fields__ if field not in derived]
    settings = {name: getattr(ours.args, name) for name in names if TARSGRPOConfig.__dataclass_fields__[name].init}
    settings |= {"output_dir": str(tmp_path / "trl"), "reward_weights": [1.0, 0.5], "generation_batch_size": None}
    settings = {name: value for name, value in settings.items() if not name.startswith(("_", "deepspeed_plugin"))}
    # The audio tower and vision are frozen in ours, by default.
    for path in ours.architecture.audio_modules.values():
        twin.get_submodule(path).requires_grad_(False)
    theirs = GRPOTrainer(twin, [odd_reward, format_reward], GRPOConfig(**settings), data(), processing_class=processor)
    theirs.train()
    for one, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for key in ("loss", "reward", "grad_norm", "completions/mean_length", "entropy"):
            assert one.get(key) == other.get(key), key
    for (name, one), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_speech_only_trains(make_trainer):
    trainer = make_trainer(modalities="speech", num_generations=4)
    trainer.train()
    log = trainer.state.log_history[0]
    assert "speech/accuracy" in log and "text/accuracy" not in log and "gap/accuracy" not in log
    assert trainer.reward_func_names == ["odd_reward", "format_reward"]


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2, "save_steps": 4, "max_steps": 8}])
def test_resume_is_exact(make_trainer, tiny, options):
    """From a checkpoint the run goes on as if it had not stopped, over an epoch's end: parameters, rewards, losses."""
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7, "warmup_steps": 0} | options
    whole = make_trainer(output="whole", build_model=copy.deepcopy(tiny[0]), **settings)
    whole.train()
    half = make_trainer(output="half", build_model=copy.deepcopy(tiny[0]), **settings)
    half.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{settings['save_steps']}")
    resumed = [log for log in half.state.log_history if log["step"] > settings["save_steps"] and "loss" in log]
    expected = [log for log in whole.state.log_history if log["step"] > settings["save_steps"] and "loss" in log]
    for one, other in zip(resumed, expected, strict=True):
        assert {k: v for k, v in one.items() if "time" not in k and k != "num_tokens"} == {
            k: v for k, v in other.items() if "time" not in k and k != "num_tokens"
        }
    for (name, one), other in zip(half.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(half.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert torch.equal(one["exp_avg"], other["exp_avg"])


def test_dropout_is_off_while_sampling_only(make_trainer):
    trainer = make_trainer(lora_dropout=0.5)
    active = []
    dropouts = [m for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]
    trainer._layers[0].register_forward_hook(lambda *_: active.append(any(d.training and d.p == 0.5 for d in dropouts)))
    output = rollout(trainer)
    assert active and not any(active)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    assert active[-1]


def test_audio_tower_trains_when_asked(make_trainer):
    """With `freeze_audio=False` clips go through the tower in every pass, and its weights move."""
    trainer = make_trainer(lora_r=0, freeze_audio=False, max_steps=2, warmup_steps=0)
    before = trainer._base.model.audio_tower.conv1.weight.clone()
    trainer.train()
    assert (trainer._base.model.audio_tower.conv1.weight - before).abs().max() > 0


# ---- Refusals ------------------------------------------------------------------------------------------------------


def test_unusable_audio_is_refused_or_skipped(make_trainer):
    rows = [question(0), question(1) | {"audio": {"bytes": b"nothing", "path": None}}, question(2, 3.0)]
    from datasets import Dataset

    with pytest.raises(AudioError, match="q1"):
        make_trainer(dataset=Dataset.from_list(rows))
    trainer = make_trainer(dataset=Dataset.from_list(rows), on_bad_audio="skip", max_audio_seconds=2.0)
    assert trainer.train_dataset["key"] == ["q0"]


def test_settings_that_cannot_work_are_refused(make_trainer):
    with pytest.raises(ValueError, match="reference_reward='missing'"):
        make_trainer(reference_reward="missing")
    with pytest.raises(ValueError, match="without streaming"):
        make_trainer(dataset=questions().to_iterable_dataset())
    with pytest.raises(ValueError, match="reward_weights has 3"):
        make_trainer(reward_weights=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="tools"):
        TARSGRPOTrainer("nowhere", [accuracy_reward], tools=[print])


# ---- Settings ------------------------------------------------------------------------------------------------------


def test_two_trainers_from_one_config_are_the_same(model_folder, embedder_folder, tmp_path):
    """The settings are the user's: a trainer neither uses them up nor adds to them, and says what it really used."""
    given = {"model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"}, "reward_weights": [1.0, 0.5]}
    given |= {"generation_kwargs": {"min_new_tokens": 1}, "behavior_model": embedder_folder, "seed": 3}
    args = TARSGRPOConfig(
        str(tmp_path / "out"), per_device_train_batch_size=8, report_to=[], save_strategy="no", **given
    )
    plain = str | int | float | list | dict | None
    before = copy.deepcopy({name: value for name, value in vars(args).items() if isinstance(value, plain)})
    made = []
    for _ in range(2):
        trainer = TARSGRPOTrainer(model_folder, [accuracy_reward, format_reward], args, questions())
        made.append(trainer)
        trainer.create_model_card()
        assert {name: vars(args)[name] for name in before} == before
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert (record["dtype"], record["attn_implementation"], record["settings"]["seed"]) == ("bfloat16", "eager", 3)
        assert record["settings"]["reward_weights"] == [1.0, 0.5, 1.0, 1.0]
        assert record["settings"]["generation_kwargs"]["suppress_tokens"]
    one, other = (trainer.model.state_dict() for trainer in made)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert made[0].reward_weights.tolist() == made[1].reward_weights.tolist() == [1.0, 0.5, 1.0, 1.0]


def test_a_push_needs_a_publisher(make_trainer):
    with pytest.raises(ValueError, match="push_to_hub=True without a publisher.*Add tars_trl.PublishCallback"):
        make_trainer(push_to_hub=True, hub_model_id="me/mine")


def test_compiled_passes_are_refused():
    with pytest.raises(ValueError, match="torch_compile=True cannot be used with spoken questions"):
        TARSGRPOConfig("out", torch_compile=True, report_to=[])
