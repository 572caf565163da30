"""Make the demo's questions and speak them: `recipes/demo/questions/{train,test}-00000-of-00001.parquet`.

What is committed was made by this script; run it again only to change the questions. It needs the engines named in
`tools/voices.py` and about three minutes of one CPU core:

    python tools/build_demo_questions.py

480 training and 300 test questions. Expressions are disjoint from each other's and from those that built the model
(`sums.split_expressions`). Every third test question is spoken by a voice that is in no training clip.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import measure
import pyarrow as pa
import pyarrow.parquet as pq
import sums
import voices
from datasets import Audio, Features, List, Value

from tars_trl.data.audio import TARGET_RATE
from tars_trl.settings import Settings, parse, run, setting
from tars_trl.speaking.clips import encode

FEATURES = Features(
    {
        "key": Value("string"),
        "audio": Audio(sampling_rate=TARGET_RATE),
        "prompt": List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}),
        "question": Value("string"),
        "options": List(Value("string")),
        "answer_index": Value("int32"),
        "voice": Value("string"),
    }
)


def build(part: str, seed: int) -> pa.Table:
    """Draw options, a voice and a pace for every expression of `part`, and say it."""
    rng = random.Random(f"{seed} {part}")
    rows = []
    for i, expression in enumerate(sums.split_expressions()[part]):
        question = sums.draw_question(expression, rng)
        voice = rng.choice(voices.TRAIN_VOICES)
        if part == "test" and i % 3 == 0:
            voice = voices.HELD_OUT_VOICE
        waveform = voices.speak(question.written(), voice, pace=rng.uniform(1.05, 1.35))
        row = {
            "key": f"sums-{part}-{i:03d}",
            "audio": {"bytes": encode(waveform), "path": f"sums-{part}-{i:03d}.ogg"},
            "prompt": sums.messages(question),
            "question": question.written().split("?")[0] + "?",
            "options": [sums.NUMBERS[n] for n in question.options],
            "answer_index": question.answer_index,
            "voice": voice,
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)  # datasets would want torchcodec to encode


@dataclass
class DemoQuestions(Settings):
    """Where the questions go, and which are drawn."""

    output_dir: str = setting(str(measure.TEST.parent), "Folder of the two parquet files.")
    seed: int = setting(0, "Of options, voices and paces.", least=0)


def main(args: list[str] | None = None) -> None:
    (settings,) = parse(DemoQuestions, args=args, description=__doc__)
    voices.check()
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        path = folder / f"{part}-00000-of-00001.parquet"
        pq.write_table(build(part, settings.seed), path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
