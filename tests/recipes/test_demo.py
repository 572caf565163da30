"""The embedded default: what the repository carries is what its README says, and the demo's parts fit together."""

import json

import pytest
import torch
from transformers import AutoProcessor

from tars_trl import accuracy_reward, load_questions
from tars_trl.data.audio import load_audio
from tars_trl.data.checking import check_audio
from tars_trl.errors import SettingError
from tars_trl.evaluation.metrics import paired_result
from tars_trl.evaluation.results import read_pair, read_samples
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.sampling.complete import complete
from tests.conftest import ROOT

DEMO = ROOT / "recipes" / "demo"


@pytest.fixture(scope="module")
def splits():
    return {split: load_questions(DEMO / "questions", split) for split in ("train", "test")}


def test_questions_are_disjoint_and_the_held_out_voice_is(splits):
    import sums

    assert len(splits["train"]) >= 400 and len(splits["test"]) >= 300
    asked = {split: {row.rstrip("?").lower() for row in data["question"]} for split, data in splits.items()}
    assert not asked["train"] & asked["test"]
    built = {
        sums.Question(terms, signs, (0, 0, 0, 0)).expression for terms, signs in sums.split_expressions()["sft"]
    }  # what the model was built on
    assert not built & (asked["train"] | asked["test"])
    unheard = set(splits["test"]["voice"]) - set(splits["train"]["voice"])
    assert unheard and 0.2 < sum(voice in unheard for voice in splits["test"]["voice"]) / len(splits["test"]) < 0.5


def test_clips_are_usable_speech(splits):
    for data in splits.values():
        assert len(check_audio(data, max_seconds=10)) == len(data)
    seconds = [len(load_audio(audio)) / 16_000 for audio in splits["test"]["audio"][:50]]
    assert min(seconds) > 2 and max(seconds) < 7


def test_it_is_small_enough_for_git():
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert max(path.stat().st_size for path in files) < 20e6
    assert sum(path.stat().st_size for path in files if "tiny-omni" in path.parts) < 24e6
    assert sum(path.stat().st_size for path in files if "questions" in path.parts) < 15e6


def test_model_reads_well_and_hears_worse(splits):
    """On 60 held-out questions, greedily; over all 300 `build.json` says 98 % and 73 %."""
    model = Qwen2_5OmniThinker().load(str(DEMO / "tiny-omni"), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(DEMO / "tiny-omni")
    rows = [splits["test"][number] for number in range(60)]
    correct = {}
    for modality in ("speech", "text"):
        texts = [c.text for c in complete(model, processor, rows, modality, batch_size=60, max_completion_length=64)]
        rewards = accuracy_reward(texts, [r["answer_index"] for r in rows], [r["options"] for r in rows])
        correct[modality] = [bool(reward) for reward in rewards]
    result = paired_result(correct["speech"], correct["text"])
    assert result["text_accuracy"] >= 0.9
    assert result["gap"] >= 0.1
    built = json.loads((DEMO / "tiny-omni" / "build.json").read_text())["test"]
    low, high = result["speech_interval"]
    assert low - 0.05 <= built["speech_accuracy"] <= high + 0.05  # the first 60 are a sample of the 300


def test_what_the_end_needs_is_looked_for_at_the_start(tmp_path, monkeypatch):
    import run_demo

    monkeypatch.setattr(run_demo, "measure", lambda *_: pytest.fail("measured before anything was looked for"))
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(SettingError, match="holds a finished run.*--overwrite_output_dir true"):
        run_demo.main(["--output_dir", str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(ImportError, match="matplotlib, not installed. Bring them: pip install"):
        run_demo.main([])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_closes_the_gap(tmp_path):
    """`make demo` in full: spoken accuracy up by 10 points or more, written accuracy down by 2 at most."""
    import subprocess
    import sys

    subprocess.run([sys.executable, "recipes/run_demo.py", "--output_dir", tmp_path], cwd=ROOT, check=True)
    before, after = (read_pair(tmp_path / "evaluation" / name) for name in ("before", "after"))
    assert after["speech_accuracy"] - before["speech_accuracy"] >= 0.10
    assert before["text_accuracy"] - after["text_accuracy"] <= 0.02
    for name in ("gap.png", "rewards.png", "before_after.png", "question.ogg", "question.md", "report.html"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert before["questions"] == after["questions"] == 300
    assert set(read_samples(tmp_path / "evaluation" / "after")) == {"demo_speech", "demo_text"}
