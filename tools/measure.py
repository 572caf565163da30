"""Accuracy of a checkpoint on spoken and written questions, through the real model and processor classes.

    python tools/measure.py recipes/demo/tiny-omni

answers every test question in both forms greedily, and the spoken form four times at temperature 1 (pass@4: one of
them is right). A completion that is not exactly in the answer form counts as wrong.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tiny_omni
import torch
from transformers import AutoProcessor, Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from tars_trl.data.audio import load_audio
from tars_trl.settings import Settings, parse, run, setting

TEST = Path(__file__).parents[1] / "recipes" / "demo" / "questions" / "test-00000-of-00001.parquet"
FORM = re.compile(r"<think>.*</think><answer>The answer is ([A-D])\.</answer>", re.DOTALL)


def chosen_index(completion: str) -> int | None:
    """Index of the chosen option, None if the completion is not in the answer form."""
    match = FORM.fullmatch(completion.strip())
    return "ABCD".index(match[1]) if match else None


def read_questions(path: Path) -> list[dict]:
    """Rows of a questions file, audio as Ogg bytes."""
    return pq.read_table(path).to_pylist()


def model_inputs(processor: Qwen2_5OmniProcessor, rows: list[dict], speech: bool) -> dict[str, torch.Tensor]:
    """Left-padded prompts of one form; audio features cropped to the longest clip."""
    conversations = []
    for row in rows:
        conversation = copy.deepcopy(row["prompt"])
        if speech:
            clip = load_audio(row["audio"])
            conversation[-1]["content"][0] = {"type": "audio", "audio": clip}
        conversations.append(conversation)
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    if speech:
        frames = int(inputs["feature_attention_mask"].sum(-1).max())
        inputs["input_features"] = inputs["input_features"][..., :frames]
        inputs["feature_attention_mask"] = inputs["feature_attention_mask"][:, :frames]
    return dict(inputs)


@torch.no_grad()
def complete(
    model: Qwen2_5OmniThinkerForConditionalGeneration,
    processor: Qwen2_5OmniProcessor,
    rows: list[dict],
    speech: bool,
    samples: int = 0,
    batch_size: int = 50,
) -> Iterator[list[str]]:
    """For each row its greedy completion, or `samples` completions at temperature 1."""
    placeholders = processor.tokenizer.convert_tokens_to_ids(list(tiny_omni.MULTIMODAL_TOKENS.values()))
    sampling = {"do_sample": True, "num_return_sequences": samples, "top_k": 0} if samples else {"do_sample": False}
    for start in range(0, len(rows), batch_size):
        inputs = model_inputs(processor, rows[start : start + batch_size], speech)
        ids = model.generate(**inputs, **sampling, max_new_tokens=64, suppress_tokens=placeholders)
        texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        n = samples or 1
        yield from (texts[i : i + n] for i in range(0, len(texts), n))


def measure(model, processor, rows: list[dict], seed: int = 0) -> dict:
    """Greedy accuracy in both forms, by voice, and spoken pass@4 and mean accuracy at temperature 1."""

    def right(speech: bool, samples: int = 0) -> torch.Tensor:  # (rows, samples or 1)
        replies = complete(model, processor, rows, speech, samples)
        chosen = [[chosen_index(text) for text in texts] for texts in replies]
        return torch.tensor([[n == row["answer_index"] for n in ns] for row, ns in zip(rows, chosen, strict=True)])

    torch.manual_seed(seed)
    speech, text, sampled = right(True)[:, 0], right(False)[:, 0], right(True, samples=4)
    voices_of_rows = [row["voice"] for row in rows]
    by_voice = {}
    for voice in sorted(set(voices_of_rows)):
        by_voice[voice] = speech[[name == voice for name in voices_of_rows]].float().mean().item()
    return {
        "questions": len(rows),
        "text_accuracy": text.float().mean().item(),
        "speech_accuracy": speech.float().mean().item(),
        "speech_pass_at_4": sampled.any(-1).float().mean().item(),
        "speech_sampled_accuracy": sampled.float().mean().item(),
        "speech_accuracy_by_voice": by_voice,
    }


def load(folder: Path) -> tuple[Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniProcessor]:
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@dataclass
class Measured(Settings):
    """What is asked what."""

    model: str | None = setting(None, "Folder of the model.", required=True, positional=True)
    questions: str = setting(str(TEST), "Parquet file of the questions.")


def main(args: list[str] | None = None) -> None:
    """Measure and print."""
    (settings,) = parse(Measured, args=args, description=__doc__)
    print(json.dumps(measure(*load(Path(settings.model)), read_questions(Path(settings.questions))), indent=2))


if __name__ == "__main__":
    run(main)
