"""DPO on spoken questions: reference, gradients of a padded batch, what is trained and refused."""

import copy

import pytest
import torch

from tars_trl.supervised import SpeechDPOConfig, SpeechDPOTrainer
from tests.conftest import questions
from tests.models.tiny import ARCHITECTURES
from tests.supervised import REPLIES, SETTINGS, TOLERANCE, gradients, native_logps, rows, said, stir

CHOSEN, REJECTED = REPLIES, ["two plus one", "one", "What is the answer? A. B. C. D. one two"]


@pytest.fixture
def make(tiny, tmp_path):
    """Build a trainer on a tiny model; keyword arguments override settings."""

    def build(parts=None, dataset=None, **settings):
        model, processor = parts or tiny
        args = SpeechDPOConfig(str(tmp_path / "out"), **{**SETTINGS, **settings})
        if dataset is None:
            dataset = rows(chosen=[said(text) for text in CHOSEN], rejected=[said(text) for text in REJECTED])
        return SpeechDPOTrainer(copy.deepcopy(model), args, dataset, processing_class=processor)

    return build


def batch_of(trainer, numbers):
    return trainer.data_collator([trainer.train_dataset[number] for number in numbers])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_batch_equals_single_rows(name, make):
    """Gradients of a batch of three pairs are the mean over those of the pairs alone."""
    trainer = make(ARCHITECTURES[name](0), beta=0.5)
    stir(trainer.model)
    whole = batch_of(trainer, [0, 1, 2])
    assert len(set(whole["attention_mask"].sum(1).tolist())) > 4  # of six rows
    together = gradients(trainer, whole)
    apart = [gradients(trainer, batch_of(trainer, [number])) for number in range(3)]
    assert together and all(gradient.abs().max() > 1e-4 for gradient in together.values())
    for parameter, gradient in together.items():
        torch.testing.assert_close(gradient, sum(alone[parameter] for alone in apart) / 3, **TOLERANCE, msg=parameter)


def test_rewards_are_against_the_base_model_without_adapter(make, tiny):
    """The log-ratio, times beta, to the untouched model, by the class's own audio path, for chosen and rejected."""
    model, processor = tiny
    trainer = make(beta=0.5)
    stir(trainer.model)
    trainer.model.train()
    base = copy.deepcopy(model)
    for number in range(3):
        trainer._metrics["train"].clear()
        trainer.compute_loss(trainer.model, batch_of(trainer, [number]))
        row = trainer.train_dataset[number]
        for kind, text in (("chosen", CHOSEN[number]), ("rejected", REJECTED[number])):
            adapted, reference = (
                native_logps(m, processor, row, text, "<|im_end|>").sum().item()
                for m in (trainer.model.get_base_model(), base)
            )
            assert abs(adapted - reference) > 0.05, "the adapter changes nothing, so nothing is tested"
            (reward,) = trainer._metrics["train"][f"rewards/{kind}"]
            assert reward == pytest.approx(0.5 * (adapted - reference), abs=1e-4)


def test_without_training_there_is_no_reward(make):
    trainer = make()
    loss = trainer.compute_loss(trainer.model, batch_of(trainer, [0, 1, 2]))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_prefers_the_chosen(make, checkpointing):
    trainer = make(max_steps=8, learning_rate=3e-2, gradient_checkpointing=checkpointing)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    margins = [log["rewards/margins"] for log in trainer.state.log_history if "rewards/margins" in log]
    assert margins[0] == pytest.approx(0, abs=1e-5) and margins[-1] > 0.1
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("language_model" in name and "lora_" in name for name in changed)
    trainer.eval_dataset = trainer.train_dataset
    assert trainer.evaluate()["eval_rewards/accuracies"] == 1


def test_what_cannot_work_is_refused(make):
    with pytest.raises(ValueError, match=r"\['chosen', 'rejected'\] are missing"):
        make(dataset=questions(2))
    wrong = {"precompute_ref_log_probs": True, "padding_free": True, "max_length": 512, "lora_r": 0}
    for setting, value in wrong.items():
        with pytest.raises(ValueError, match=f"{setting}=.*"):
            make(**{setting: value})
