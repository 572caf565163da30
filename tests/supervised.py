"""What the tests of both supervised trainers share: rows, gradients, and log-probs by the class's own audio path."""

import torch
from datasets import Audio, Dataset

from tars_trl.data.audio import load_audio
from tars_trl.data.prompts import spoken_prompt
from tests.conftest import question

# Largest differences over four seeds: 4e-6 (SFT) and 1.2e-5 (DPO), of gradients up to 3; sums in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}

SETTINGS = {
    "per_device_train_batch_size": 3,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "lora_dropout": 0.0,
}

REPLIES = ["one", "<think>two plus one</think><answer>The answer is B.</answer>", "What is two? The answer is three."]


def rows(count: int = 3, **columns) -> Dataset:
    """Questions with clips and texts of different lengths, and further columns, undecoded."""
    made = [{**question(n), **{name: values[n] for name, values in columns.items()}} for n in range(count)]
    return Dataset.from_list(made).cast_column("audio", Audio(decode=False))


def said(text: str) -> list[dict]:
    """A completion as TRL's data sets have it."""
    return [{"role": "assistant", "content": text}]


def stir(model) -> None:
    """Random adapters, so that every one of their weights has a gradient and changes the output."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def gradients(trainer, batch, **options) -> dict[str, torch.Tensor]:
    """Gradient of the loss of a batch with respect to everything trainable."""
    trainer.model.zero_grad()
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch, **options).backward()
    named = trainer.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.requires_grad}


def native_logps(model, processor, row, text: str, ends: str) -> torch.Tensor:
    """Log-probs of a reply's tokens after the spoken prompt, by the thinker's own audio path and its whole logits."""
    conversation = processor.apply_chat_template(
        [spoken_prompt(row["prompt"])], tokenize=False, add_generation_prompt=True
    )[0]
    written = conversation + text + ends
    inputs = processor(text=written, audio=[load_audio(row["audio"])], return_tensors="pt")
    count = len(processor.tokenizer(text + ends)["input_ids"])
    with torch.no_grad():
        logps = model(**inputs).logits.log_softmax(-1)
    reply = inputs["input_ids"][:, -count:]
    return logps[:, -count - 1 : -1].gather(-1, reply.unsqueeze(-1)).squeeze()
