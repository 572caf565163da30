"""xFinder, a small extraction model; the paper's choice."""

import json
from collections.abc import Sequence
from typing import Any


class XFinder:
    """The extractor model of the paper (`IAAR-Shanghai/xFinder-qwen1505`, 0.5B), through transformers.

    Args:
        model_id: hub id or folder of a causal language model trained for xFinder's prompt.
        device: where it runs.
        batch_size: completions in a forward pass.
    """

    def __init__(self, model_id: str, device: Any = "cpu", batch_size: int = 16):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(model_id).to(device).eval()
        self.batch_size = batch_size

    def __call__(
        self, questions: Sequence[str], completions: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[int | None]:
        """Index of the option that each of N whole completions chose, None where the model finds no valid answer.

        `questions` are without their options, which are lists of texts.
        """
        prompts = list(map(xfinder_prompt, questions, completions, options))
        starts = range(0, len(prompts), self.batch_size)
        replies = [reply for start in starts for reply in self._replies(prompts[start : start + self.batch_size])]
        return list(map(xfinder_choice, replies, options))

    def _replies(self, prompts: list[str]) -> list[str]:
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = self.model.generate(
            **inputs, max_new_tokens=64, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
        )
        return self.tokenizer.batch_decode(output[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def xfinder_prompt(question: str, completion: str, options: Sequence[str]) -> str:
    """The prompt that the model was trained with: a fixed interface, https://github.com/IAAR-Shanghai/xFinder."""
    answer_range = json.dumps([[chr(ord("A") + index), text] for index, text in enumerate(options)])
    return (
        "<|System|>:You are a help assistant tasked with extracting the precise key answer from given output "
        "sentences.\n"
        f'<|User|>:Question: """{question}"""\n\nOutput sentences: """{completion}"""\n\n'
        f"Answer range: {answer_range}\n\nKey extracted answer: \n<|Bot|>:"
    )


def xfinder_choice(reply: str, options: Sequence[str]) -> int | None:
    """The option that xFinder's reply names, by letter or by text; None for "[No valid answer]" and anything else."""
    said = reply.strip().partition("\n")[0].rstrip(".").strip().casefold()
    letters = [chr(ord("a") + index) for index in range(len(options))]
    if said in letters:
        return letters.index(said)
    texts = [option.strip().rstrip(".").casefold() for option in options]
    return texts.index(said) if said and texts.count(said) == 1 else None
