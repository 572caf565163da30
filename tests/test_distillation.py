"""The written teacher in the trainer: what it reads, what the update makes of it, what it costs, and without labels."""

import math

import pytest
import torch
from trl.trainer.utils import use_adapter

from tars_trl.data.prompts import written_prompt
from tars_trl.errors import SettingError
from tests.conftest import question, questions
from tests.models.test_speech_llms import ARCHITECTURES
from tests.test_sharing_prompts import counted_tokens
from tests.test_trainer import generation

SETTINGS = {"distillation_weight": 0.7, "lora_dropout": 0.0, "temperature": 0.8, "per_device_train_batch_size": 16,
            "warmup_steps": 0}  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def make(request, make_trainer):
    """`make_trainer` on each architecture, with an adapter that is not the nothing that LoRA starts as."""

    def build(**settings):
        model, processor = ARCHITECTURES[request.param](0)
        trainer = make_trainer(build_model=model, processing_class=processor, **SETTINGS | settings)
        draw = torch.Generator().manual_seed(0)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
        return trainer

    return build


def rollout(trainer, numbers=(0, 3)):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(generation(trainer, numbers))


def logits_alone(trainer, prompt, ids, clip=None):
    """(tokens, V) that predict a completion, of one row without padding, through the class's own forward."""
    from tars_trl.models.prompting import heard

    row = torch.tensor([prompt + ids])
    with heard(trainer._base, [clip]):
        logits = trainer.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    return logits[0, len(prompt) - 1 : -1].float() / trainer.args.temperature


def written(trainer, row):
    prompt = written_prompt(question(int(row["key"][1:]))["prompt"])
    return trainer.architecture.prompt(trainer.processing_class, prompt, None).ids


def each_row(trainer, output):
    """Number, row, prompt, completion and clip of every row of a generation."""
    for number, row in enumerate(trainer._rollout.rows):
        ids = output["completion_ids"][number][output["completion_mask"][number].bool()].tolist()
        yield number, row, trainer._rollout.prompts[number].ids, ids, output["audio"][number]


@pytest.mark.parametrize("kind", ["base", "live"])
@pytest.mark.parametrize("shared_prefix", ["auto", "never"])
def test_teacher_reads_the_written_prompt(make, kind, shared_prefix):
    """Its log-probs are those of single, unpadded forward passes of the model, with the adapter off or on."""
    trainer = make(teacher_model_kind=kind, shared_prefix=shared_prefix)
    trainer._sharing.checked = {"policy", "teacher"}
    output = rollout(trainer)
    for number, row, _, ids, _ in each_row(trainer, output):
        said = output["teacher_logps"][number]
        if row["modality"] == "text" or not ids:
            assert output["lesson_weights"][number] == 0 and not said.any()
            continue
        given = {}
        for teacher in ("base", "live"):
            with torch.no_grad(), use_adapter(trainer.model, None if teacher == "base" else "default"):
                logps = logits_alone(trainer, written(trainer, row), ids).log_softmax(-1)
            given[teacher] = logps.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(said[: len(ids)], given[kind], rtol=0, atol=1e-5)
        assert (given["base"] - given["live"]).abs().max() > 1e-3  # the other teacher would be seen
        assert not said[len(ids) :].any()


@pytest.mark.parametrize("settings", [
    {},
    {"distillation_gate": "one_sided", "distillation_clip": 0.05},
    {"distillation_gate": "correct"},
    {"distillation_text_weight": 0.4},
    {"distillation_mode": "full_logits", "distillation_alpha": 0.0},
    {"distillation_mode": "full_logits", "distillation_alpha": 1.0, "distillation_clip": 0.05},
    {"distillation_mode": "full_logits", "distillation_alpha": 0.5, "shared_prefix": "never"},
], ids=str)  # fmt: skip
def test_gradient_is_that_of_the_formula(make, settings):
    """The update's gradient, and the metric, from single rows.

    It is the policy gradient with A + w (log pi_T - log pi), or that with A and the gradient of the divergence.
    """
    trainer = make(**settings)
    trainer._sharing.checked = {"policy", "teacher"}
    output = rollout(trainer)
    args = trainer.args
    trainer._compute_loss(trainer.model, output).backward()
    own = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    logged = trainer._metrics["train"]["distillation/kl"][-1]
    trainer.model.zero_grad()

    correct = torch.tensor(list(trainer._logs["rewards"]["odd_reward"])) >= 1
    apart, loss = [], 0
    for number, row, prompt, ids, clip in each_row(trainer, output):
        spoken = row["modality"] == "speech"
        weight = args.distillation_weight if spoken else args.distillation_text_weight
        half = slice(number - number % 8 + 4, number - number % 8 + 8)
        if spoken and args.distillation_gate == "correct" and not correct[half].any():
            weight = 0.0
        tokens = torch.tensor(ids).unsqueeze(1)
        with torch.no_grad(), use_adapter(trainer.model, None):
            teacher = logits_alone(trainer, written(trainer, row), ids).log_softmax(-1)
        student = logits_alone(trainer, prompt, ids, clip).log_softmax(-1)
        logps = student.gather(1, tokens).squeeze(1)
        advantage = output["advantages"][number]
        limit = args.distillation_clip
        if args.distillation_mode == "sampled_token":
            difference = teacher.gather(1, tokens).squeeze(1) - logps.detach()
            term = difference.clamp(-limit, limit)
            if spoken and args.distillation_gate == "one_sided":
                term = term.clamp(min=0)
            loss = loss - ((advantage + weight * term) * logps).sum()
            apart += (-difference).tolist() if spoken and weight else []
        else:
            mixture = (args.distillation_alpha * teacher.exp() + (1 - args.distillation_alpha) * student.exp()).log()
            of_teacher = (teacher.exp() * (teacher - (mixture if args.distillation_alpha else student))).sum(-1)
            of_student = (student.exp() * (student - (mixture if args.distillation_alpha < 1 else teacher))).sum(-1)
            distance = {0.0: of_teacher, 1.0: of_student}.get(
                args.distillation_alpha,
                args.distillation_alpha * of_teacher + (1 - args.distillation_alpha) * of_student,
            )
            scale = (limit / distance.detach()).clamp(max=1)
            loss = loss + (weight * scale * distance).sum() - (advantage * logps).sum()
            apart += distance.tolist() if spoken else []
    (loss / output["num_items_in_batch"]).backward()
    scale = max(gradient.abs().max() for gradient in own.values())
    assert scale > 0
    for name, parameter in trainer.model.named_parameters():
        if name in own:
            torch.testing.assert_close(parameter.grad / scale, own[name] / scale, rtol=0, atol=1e-5)
    assert logged == pytest.approx(sum(apart) / len(apart), abs=1e-5)


def test_off_costs_nothing(make_trainer):
    """No row goes through the model for a teacher, and the logs have nothing of one."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert not any("distillation" in name for name in trainer.state.log_history[0])
    assert not trainer._rollout.written and trainer._taught is None


def test_shares_of_the_advantages(make_trainer):
    """By modality they add up to one; what a written row cannot earn has no share there."""
    trainer = make_trainer(**SETTINGS, max_steps=1, representation_weight=3)
    trainer.train()
    log = trainer.state.log_history[0]
    for modality in ("speech", "text"):
        shares = {name: value for name, value in log.items() if name.startswith(f"{modality}/advantage_share/")}
        assert len(shares) == 5 and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert log["text/advantage_share/distillation"] == log["text/advantage_share/representation_alignment"] == 0
    assert log["speech/advantage_share/distillation"] != 0
    assert math.isfinite(log["distillation/kl/first_third"]) and "distillation/text_kl" not in log


def test_cost_is_counted(make_trainer):
    """The teacher's pass takes a small part of a step's tokens: its prompts are short, and shared."""
    counts = {}
    for weight in (0.0, 1.0):
        settings = {"max_steps": 1, "output": str(weight), "gradient_accumulation_steps": 4}
        trainer = make_trainer(distillation_weight=weight, **settings)
        trainer._sharing.checked = {"policy", "teacher"}
        tokens = counted_tokens(trainer)
        torch.manual_seed(0)
        trainer.train()
        counts[weight] = sum(tokens)
    read = counts[1.0] - counts[0.0]
    prompts = {tuple(prompt.ids) for prompt in trainer._rollout.written}
    spoken = [row["modality"] == "speech" for row in trainer._rollout.rows]
    completions = sum(trainer.args.max_completion_length for heard in spoken if heard)
    assert 0 < read <= sum(map(len, prompts)) + completions


@pytest.fixture
def make_unrewarded(make_trainer):
    """`make_trainer` without reward functions, on clips and prompts alone."""
    nothing = {"reward_funcs": None, "representation_weight": 0, "behavior_weight": 0}
    rows = questions().select_columns(["audio", "prompt", "key"])
    return lambda **settings: make_trainer(dataset=rows, **SETTINGS | nothing | settings)


def test_without_labels_or_rewards(make_unrewarded, caplog):
    """Clips and transcripts are enough; written rows are held to the teacher, too, and the weights move."""
    trainer = make_unrewarded()
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert trainer.args.distillation_text_weight == 0.7
    assert first["distillation/text_kl"] == pytest.approx(0, abs=1e-5)  # LoRA starts as nothing
    assert second["distillation/text_kl"] != 0 and first["grad_norm"] > 0
    assert first["speech/advantage_share/distillation"] == pytest.approx(1)
    assert "Health" not in caplog.text


def test_spoken_completions_come_closer_to_the_teacher(make_unrewarded):
    """Divergence over the vocabulary, of a dozen steps: it falls."""
    trainer = make_unrewarded(distillation_mode="full_logits", max_steps=12, learning_rate=5e-3)
    trainer.train()
    logged = [log["distillation/kl"] for log in trainer.state.log_history if "distillation/kl" in log]
    assert sum(logged[-3:]) < 0.7 * sum(logged[:3])


def test_micro_batches_without_a_taught_row(make_unrewarded):
    """Twins lie together, so that some hold written rows alone; over the vocabulary nothing is to be learned there."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "distillation_text_weight": 0.0}
    trainer = make_unrewarded(distillation_mode="full_logits", max_steps=1, **settings)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["distillation/kl"] > 0 and "distillation/text_kl" not in log and log["grad_norm"] > 0


def test_live_teacher_is_warned_of(make_unrewarded, make_trainer, caplog):
    trainer = make_unrewarded(teacher_model_kind="live")
    assert "Nothing holds a live teacher" in caplog.text and trainer.args.distillation_text_weight == 0
    caplog.clear()
    make_trainer(distillation_weight=1.0)
    assert "live teacher" not in caplog.text
    make_trainer(distillation_weight=1.0, teacher_model_kind="live")
    assert "Nothing holds a live teacher" in caplog.text


def test_truncated_and_empty_completions(make_trainer):
    """One that does not count is not read; an empty one is its end token."""
    from tests.test_trainer import fixed

    trainer = make_trainer(**{**SETTINGS, "per_device_train_batch_size": 8}, mask_truncated_completions=True)
    end = trainer.eos_token_ids[0]
    fixed(trainer, [[30, 31, 32], [end], [33, end], [34, end], [35, end], [36, end], [37, end], [38, 39]])
    output = rollout(trainer, (0,))
    assert output["lesson_weights"].tolist() == pytest.approx([0, 0.7, 0.7, 0.7, 0, 0, 0, 0])
    assert not output["teacher_logps"][0].any() and output["teacher_logps"][1, 0] != 0
    loss = trainer._compute_loss(trainer.model, output)
    assert loss.isfinite()
    fixed(trainer, [[30, 31, 32]] * 8)  # nothing at all
    assert trainer._compute_loss(trainer.model, rollout(trainer, (0,))).isfinite()


def test_one_modality(make_trainer):
    """Spoken rows alone can be taught, too."""
    trainer = make_trainer(modalities="speech", distillation_weight=1.0, num_generations=4, max_steps=1)
    trainer.train()
    assert "distillation/kl" in trainer.state.log_history[0]


@pytest.mark.parametrize(("settings", "named"), [
    ({"distillation_text_weight": 1.0}, "distillation_weight=0"),
    ({"distillation_weight": 1.0, "modalities": "text"}, "modalities='text'"),
    ({"distillation_weight": 1.0, "distillation_text_weight": 1.0, "modalities": "speech"}, "no written rows"),
    ({"distillation_weight": 1.0, "distillation_text_weight": 1.0, "teacher_model_kind": "live"}, "'live'"),
    ({"distillation_weight": 1.0, "distillation_gate": "correct", "modalities": "speech"}, "could be right"),
    ({"distillation_weight": 1.0, "distillation_gate": "one_sided", "distillation_mode": "full_logits"}, "no sides"),
    ({"distillation_weight": 1.0, "loss_type": "sapo", "distillation_mode": "full_logits"}, "loss_type='sapo'"),
    ({"distillation_weight": 1.0, "lora_r": 0}, "teacher_model_kind='base' with lora_r=0"),
])  # fmt: skip
def test_what_cannot_work_is_refused(make_trainer, settings, named):
    with pytest.raises(SettingError, match=named):
        make_trainer(**settings)


def test_gate_needs_a_reward_that_says_correct(make_unrewarded):
    with pytest.raises(SettingError, match="distillation_gate"):
        make_unrewarded(distillation_gate="correct")
