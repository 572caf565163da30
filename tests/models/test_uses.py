"""What a user does with each architecture, from a folder: train, resume from what was saved, evaluate, chat."""

import json

import chat
import evaluate
import numpy as np
import pytest
import torch

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
from tars_trl.models import architecture_of
from tars_trl.models.loading import load_speech_llm
from tars_trl.sampling.complete import complete
from tests.conftest import odd_reward, question, questions
from tests.models.tiny import ARCHITECTURES
from tests.trained import logits


@pytest.fixture(scope="session", params=ARCHITECTURES)
def saved(request, tmp_path_factory):
    """(architecture, folder) of a random model whose completions depend on the prompt."""
    model, processor = ARCHITECTURES[request.param](0)
    for weight in model.get_decoder().layers.parameters():
        weight.data.mul_(3)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return architecture_of(request.param), str(folder)


def train(folder, embedder, output, **settings):
    arguments = {
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_steps": 2,
        "mask_truncated_completions": False,
        "reference_reward": "odd_reward",
        "behavior_model": embedder,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    config = TARSGRPOConfig(str(output), **arguments)
    trainer = TARSGRPOTrainer(folder, [odd_reward, format_reward], config, questions())
    start = {name: tensor.clone() for name, tensor in trainer._base.state_dict().items()}
    trainer.train()
    assert trainer._sharing.on and trainer._sharing.checked  # prompts were shared, and the plain pass agreed
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 2 and all(np.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps)
    changed = {name for name, tensor in trainer._base.state_dict().items() if not torch.equal(tensor, start[name])}
    return trainer, steps, changed


def test_training(saved, embedder_folder, tmp_path):
    """TARS runs, trains LoRA in the decoder alone, logs the alignment, and its checkpoint gives the trained model."""
    architecture, folder = saved
    trainer, steps, changed = train(folder, embedder_folder, tmp_path)
    assert any(step["alignment/no_reference"] < 1 for step in steps)
    assert {"speech/accuracy", "text/accuracy", "rewards/representation_alignment/mean"} <= steps[0].keys()
    assert changed and all("lora_" in name and name.startswith(architecture.decoder) for name in changed)
    table = json.loads((tmp_path / "run.json").read_text())["trainable"]
    assert {row["component"] for row in table if row["trainable"]} == {"language model, LoRA", "total"}
    trained = logits(trainer.model.eval())
    again, processor = load_speech_llm(str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=1e-5)
    assert (trained - logits(load_speech_llm(folder)[0])).abs().max() > 1e-3
    asked = architecture.prompt(processor, question(0)["prompt"], None)
    assert asked.ids == architecture.prompt(trainer.processing_class, question(0)["prompt"], None).ids


@pytest.mark.slow
def test_training_the_whole_model(saved, embedder_folder, tmp_path):
    """Without LoRA: the decoder alone, and of a mixture all but the router."""
    architecture, folder = saved
    _, _, changed = train(folder, embedder_folder, tmp_path, lora_r=0, save_strategy="no")
    inside = (architecture.decoder, "lm_head")
    assert changed and all(name.startswith(inside) for name in changed)
    if architecture.router is not None:
        assert any(".experts." in name for name in changed)
        assert not any(f".{architecture.router}." in name for name in changed)


def test_evaluation_and_chat(saved, questions_folder, tmp_path, capsys):
    """Both give the completions of the loaded model, in both forms."""
    _, folder = saved
    model, processor = load_speech_llm(folder)
    row = {"key": "q", **question(1)}
    expected = {
        form: next(complete(model, processor, [row], form, max_completion_length=6)).text for form in ("speech", "text")
    }
    assert expected["speech"] != expected["text"]
    (tmp_path / "question.wav").write_bytes(row["audio"]["bytes"])
    system, user = (turn["content"][0]["text"] for turn in row["prompt"])
    asked = ["--audio", str(tmp_path / "question.wav"), "--text", user, "--system_prompt", system]
    assert chat.main(["--model", folder, *asked, "--max_completion_length", "6", "--use_cpu"]) == expected
    command = ["--model", folder, "--tasks", f"demo={questions_folder}", "--output_dir", str(tmp_path / "results")]
    evaluate.main([*command, "--limit", "2", "--max_completion_length", "6", "--log_samples", "--use_cpu"])
    (results,) = (tmp_path / "results").rglob("results*.json")
    assert set(json.loads(results.read_text())["results"]) >= {"demo_speech", "demo_text"}
    for line in (json.loads(line) for path in results.parent.glob("samples*speech*") for line in path.open()):
        assert line["resps"][0][0] or line["tokens"]
