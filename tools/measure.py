"""Accuracy of a checkpoint on spoken and written questions, and by voice.

    python tools/measure.py recipes/demo/tiny-omni

answers every test question in both forms greedily, and the spoken form four times at temperature 1 (pass@4: one of
them is right). A completion that is not exactly in the answer form counts as wrong.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tars_trl import load_speech_llm
from tars_trl.data.answers import extract_strict, is_well_formed
from tars_trl.data.prompts import Modality
from tars_trl.sampling.complete import complete
from tars_trl.settings import Settings, parse, run, setting

TEST = Path(__file__).parents[1] / "recipes" / "demo" / "questions" / "test-00000-of-00001.parquet"


def measure(model_folder: str, rows: list[dict]) -> dict[str, Any]:
    """Greedy accuracy in both forms, by voice, and spoken pass@4 and mean accuracy at temperature 1."""
    model, processor = load_speech_llm(model_folder, device="cpu")

    def right(modality: Modality, samples: int = 1, **sampling: Any) -> np.ndarray:  # (rows, samples)
        length = {"batch_size": 50, "max_completion_length": 64, "num_samples": samples}
        texts = [completion.text for completion in complete(model, processor, rows, modality, **length, **sampling)]
        choices = np.array([extract_strict(text) if is_well_formed(text) else None for text in texts])
        return choices.reshape(-1, samples) == np.array([[row["answer_index"]] for row in rows])

    speech, sampled = right("speech")[:, 0], right("speech", samples=4, do_sample=True, top_k=0)
    return {
        "questions": len(rows),
        "text_accuracy": right("text").mean(),
        "speech_accuracy": speech.mean(),
        "speech_pass_at_4": sampled.any(-1).mean(),
        "speech_sampled_accuracy": sampled.mean(),
        "speech_accuracy_by_voice": pd.Series(speech).groupby([row["voice"] for row in rows]).mean().to_dict(),
    }


@dataclass
class Measured(Settings):
    """What is asked what."""

    model: str | None = setting(None, "Folder of the model.", required=True, positional=True)
    questions: str = setting(str(TEST), "Parquet file of the questions.")


def main(args: list[str] | None = None) -> None:
    (settings,) = parse(Measured, args=args, description=__doc__)
    print(json.dumps(measure(settings.model, pq.read_table(settings.questions).to_pylist()), indent=2))


if __name__ == "__main__":
    run(main)
