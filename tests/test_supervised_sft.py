"""SFT on spoken questions: what is scored, that a padded batch equals its rows, what is trained, saved and refused."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from trl import SFTConfig

from tars_trl.errors import AudioError, QuestionError
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.supervised import SpeechSFTConfig, SpeechSFTTrainer, completed_questions
from tests.conftest import ROOT, question, questions
from tests.models.tiny import ARCHITECTURES
from tests.supervised import REPLIES, SETTINGS, TOLERANCE, gradients, native_logps, rows, said, stir


@pytest.fixture
def make(tiny, tmp_path):
    """Build a trainer on a tiny model; keyword arguments override settings."""

    def build(parts=None, dataset=None, **settings):
        model, processor = parts or tiny
        args = SpeechSFTConfig(str(tmp_path / "out"), **{**SETTINGS, **settings})
        dataset = rows(completion=[said(text) for text in REPLIES]) if dataset is None else dataset
        return SpeechSFTTrainer(copy.deepcopy(model), args, dataset, processing_class=processor)

    return build


def batch_of(trainer, numbers):
    return trainer.data_collator([trainer.train_dataset[number] for number in numbers])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_batch_equals_single_rows(name, make):
    """Gradients of a batch of three lengths are those of its rows, each alone."""
    trainer = make(ARCHITECTURES[name](0))
    stir(trainer.model)
    whole = batch_of(trainer, [0, 1, 2])
    lengths = whole["attention_mask"].sum(1).tolist()
    assert len({len(clip) for clip in whole["audio"]}) == 1 and len(set(lengths)) == 3
    tokens = (whole["labels"] != -100).sum()
    together = gradients(trainer, whole, num_items_in_batch=tokens)
    apart = [gradients(trainer, batch_of(trainer, [number]), num_items_in_batch=tokens) for number in range(3)]
    assert together and all(gradient.abs().max() > 1e-4 for gradient in together.values())
    for parameter, gradient in together.items():
        torch.testing.assert_close(gradient, sum(alone[parameter] for alone in apart), **TOLERANCE, msg=parameter)


def test_loss_is_of_the_reply_under_the_spoken_prompt(make, tiny):
    """The loss is that of the class's own audio path, over the reply and the token that ends it, and nothing else."""
    trainer = make()
    _, processor = tiny
    base = trainer.model.get_base_model()
    for number in range(3):
        row = trainer.train_dataset[number]
        expected = -native_logps(base, processor, row, REPLIES[number], "<|im_end|>").mean()
        trainer.model.eval()  # adapters are still zero
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, batch_of(trainer, [number]))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_audio_is_heard(make):
    """Another clip under the same words is another loss."""
    trainer = make()
    losses = set()
    for seconds in (0.5, 0.9):
        row = {**trainer.train_dataset[0], "audio": question(3, seconds)["audio"]}
        with torch.no_grad():
            losses.add(round(trainer.compute_loss(trainer.model, trainer.data_collator([row])).item(), 6))
    assert len(losses) == 2


def test_text_and_message_completions_are_the_same(make):
    trainer = make()
    row = {"text": "one two", "message": said("one two")}
    assert trainer.data_collator.completion_ids(row, "text") == trainer.data_collator.completion_ids(row, "message")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_completion_ends_as_a_turn_does(name, make):
    """The token that the chat template puts behind a reply, not whichever the tokenizer calls its end."""
    end = {"phi4_multimodal": "<|end|>", "voxtral": "</s>"}.get(name, "<|im_end|>")
    trainer = make(ARCHITECTURES[name](0))
    ids = trainer.data_collator.completion_ids({"completion": "one"}, "completion")
    assert trainer.processing_class.tokenizer.decode(ids[-1:]) == end


def test_template_without_an_end_is_refused(tiny):
    _, processor = tiny
    with pytest.raises(ValueError, match="would not learn to stop"):
        Qwen2_5OmniThinker().end_of_turn(processor, [1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_changes_the_language_model_alone(make, tiny, tmp_path, checkpointing):
    trainer = make(max_steps=12, learning_rate=3e-2, eval_strategy="no", gradient_checkpointing=checkpointing)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] - 0.3
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("language_model" in name and "lora_" in name for name in changed)
    table = json.loads((tmp_path / "out" / "run.json").read_text())["trainable"]
    assert {row["component"] for row in table if row["trainable"]} == {"language model, LoRA", "total"}
    trainer.save_model()
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny[0]), tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], p) for name, p in trainer.model.state_dict().items() if "lora_" in name)


def test_evaluation_loss(make):
    trainer = make()
    trainer.eval_dataset = trainer.train_dataset
    figures = trainer.evaluate()
    assert figures["eval_loss"] > 0 and "eval_mean_token_accuracy" in figures


def test_what_cannot_work_is_refused(make, tiny):
    with pytest.raises(ValueError, match="args is a SFTConfig"):
        SpeechSFTTrainer(tiny[0], SFTConfig("out", use_cpu=True, bf16=False), questions(2), processing_class=tiny[1])
    with pytest.raises(ValueError, match=r"\['completion'\] are missing"):
        make(dataset=questions(2))
    with pytest.raises(AudioError, match="too long"):
        make(max_audio_seconds=0.45)
    assert len(make(max_audio_seconds=0.6, on_bad_audio="skip").train_dataset) == 2
    for setting, value in {"packing": True, "padding_free": True, "max_length": 512, "lora_r": -1}.items():
        with pytest.raises(ValueError, match=f"{setting}=.*"):
            make(**{setting: value})


@pytest.mark.parametrize(
    ("completions", "why"),
    [
        ([None, "one"], "row 'q0', completion: None is no text"),
        ([5, 6], "row 'q0', completion: 5 is no text"),
        ([[], said("one")], r"row 'q0', completion: \[\] is no text"),
        ([said("one"), said(None)], "row 'q1', completion: .* is no text and no assistant's message"),
        ([said("one"), [{"role": "user", "content": "two"}]], "row 'q1', completion: .*user.* is no text"),
        ([said("one"), said("one") * 2], "row 'q1', completion: .* is no text"),
        (["one", "two <|AUDIO|> three"], r"row 'q1', completion: '<\|AUDIO\|>' is no text to the model"),
        (["one<|im_end|>", "two"], r"row 'q0', completion: '<\|im_end\|>' is no text to the model"),
    ],
)
def test_completions_that_cannot_be_learned_from_are_refused_by_row(completions, why):
    args = SpeechSFTConfig("out", **SETTINGS)
    with pytest.raises(QuestionError, match=why):
        completed_questions(rows(2, completion=completions), ("completion",), args)
    pairs = rows(2, chosen=["a", "b"], rejected=completions)
    with pytest.raises(QuestionError, match=why.replace("completion", "rejected", 1)):
        completed_questions(pairs, ("chosen", "rejected"), args)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_two_processes_train_as_one(recipe, tiny, tmp_path):
    """The recipe on two processes with half the batch each ends with the adapter of one process."""
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    replies = {"completion": [said(text) for text in [*REPLIES, "two"]]}
    if recipe == "dpo":
        replies = {"chosen": replies["completion"], "rejected": replies["completion"][::-1]}
    (tmp_path / "data").mkdir()
    rows(4, **replies).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    arguments = [ROOT / "recipes" / f"{recipe}.py", "--model", tmp_path / "model", "--dtype", "float32",
                 "--dataset", tmp_path / "data", "--max_steps", "2", "--optim", "sgd", "--learning_rate", "10",
                 "--lr_scheduler_type", "constant", "--lora_dropout", "0", "--bf16", "false", "--report_to", "none",
                 "--save_strategy", "no"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    adapters = []
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        command += [*arguments, "--output_dir", out, "--per_device_train_batch_size", 4 // processes]
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        adapters.append(load_file(out / "adapter_model.safetensors"))
    one, two = adapters
    assert max(weight.abs().max() for name, weight in one.items() if "lora_B" in name) > 0.01
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5, msg=name)
