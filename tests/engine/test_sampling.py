"""`--backend vllm`: completions of the same questions by an engine, in evaluation, scores and preference pairs."""

import json
import os
import subprocess
import sys

import pytest

from tars_trl.data.prompts import MODALITIES
from tars_trl.models import architecture_of, vllm
from tars_trl.models.loading import load_speech_llm
from tars_trl.sampling import shared
from tars_trl.sampling.complete import complete
from tars_trl.sampling.preferences import PreferenceSettings, build_preferences
from tars_trl.sampling.scores import ScoreSettings, score_questions
from tests.conftest import ROOT, question
from tests.engine.conftest import LENGTH, QUESTIONS, TINY
from tests.models.tiny import ARCHITECTURES


@pytest.fixture
def engine(engines, monkeypatch):
    """tiny-omni in the engine that the tests share."""
    import vllm as library

    monkeypatch.setattr(library, "LLM", lambda folder, **options: engines(model=folder, **options))
    before = dict(os.environ)
    made = vllm.Engine(*load_speech_llm(TINY), TINY)
    assert dict(os.environ) == before  # what a later process would take for its own place
    return made


@pytest.mark.parametrize("modality", MODALITIES)
def test_greedy_completions_are_those_of_transformers(engine, asked, modality):
    rows, options = list(asked.select(range(40))), {"max_completion_length": LENGTH, "batch_size": 40}
    model, processor = load_speech_llm(TINY)
    assert list(complete(engine, processor, rows, modality, **options)) == list(
        complete(model, processor, rows, modality, **options)
    )


def test_samples_follow_seed_and_question(engine, asked):
    """Whichever questions are asked beside it; several of one question differ."""
    _, processor = load_speech_llm(TINY)

    def sample(numbers, seed=0):
        options = {"num_samples": 3, "do_sample": True, "temperature": 1.0, "max_completion_length": 24, "seed": seed}
        done = complete(engine, processor, list(asked.select(numbers)), "speech", batch_size=8, **options)
        return [completion.ids for completion in done]

    together = sample(range(6))
    assert sample([4]) == together[12:15] and len(set(together)) > 9
    assert sample([4], seed=1) != together[12:15]


def test_scores_and_preferences_are_sampled_and_resumed(engine, tmp_path, monkeypatch):
    """Both commands with the engine; what is there already is not sampled again, and transformers' is another."""
    loads = []
    monkeypatch.setattr(vllm, "Engine", lambda *args, **options: loads.append(args) or engine)
    told = {"model": TINY, "dataset": QUESTIONS, "split": "test", "limit": 12, "max_completion_length": LENGTH}
    told |= {"backend": "vllm", "num_samples": 4, "use_cpu": True, "output_dir": str(tmp_path)}
    scores = [score_questions(ScoreSettings(**told))[0] for _ in range(2)]
    assert scores[0] == scores[1] and len(loads) == 1
    counts = [build_preferences(PreferenceSettings(**told)) for _ in range(2)]
    assert counts[0] == counts[1] and len(loads) == 2
    assert json.loads((tmp_path / "report.json").read_text())["backend"].startswith("vllm 0.")
    facts = [shared.model_facts(ScoreSettings(**(told | {"backend": name}))) for name in ("vllm", "transformers")]
    assert facts[0].pop("backend") and facts[0] == facts[1]


def test_evaluation_of_the_demo(tmp_path):
    """The command itself: 300 questions in both forms, an engine from a thinker's own folder; accuracies are equal."""
    contents = {}
    for backend in ("transformers", "vllm"):
        command = [
            *(sys.executable, "recipes/evaluate.py", "--model", TINY, "--tasks", f"demo={QUESTIONS}"),
            *("--use_cpu", "true"),
            *("--max_completion_length", str(LENGTH), "--batch_size", "300", "--backend", backend),
            *("--vllm_max_model_length", "512", "--log_samples", "true", "--output_dir", str(tmp_path / backend)),
        ]
        for _ in range(2):  # the second finds it finished
            done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
        assert "Finished already" in done.stdout
        (file,) = (tmp_path / backend).glob("*/results_*.json")
        contents[backend] = json.loads(file.read_text())
    for modality in MODALITIES:
        first, second = (content["results"][f"demo_{modality}"] for content in contents.values())
        assert first["acc,none"] == second["acc,none"] > 0.2
    assert contents["vllm"]["config"]["backend"].startswith("vllm 0.")
    assert contents["vllm"]["fingerprint"] != contents["transformers"]["fingerprint"]


OTHERS = [name for name in ARCHITECTURES if architecture_of(name).in_vllm and name != "qwen2_5_omni_thinker"]


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_architecture_that_vllm_has(name, tmp_path):
    """A random model, made to mind its prompt: 40 spoken and 40 written questions are answered as by transformers."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}  # of 32, the least of vLLM's kernels on a CPU
    model, processor = ARCHITECTURES[name](0, seconds=30, **heads)  # which vLLM takes for granted
    for weight in model.get_submodule(architecture_of(name).decoder).layers.parameters():
        weight.data.mul_(4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    engine = vllm.Engine(model, processor, str(tmp_path), max_model_length=512)
    rows = [question(number % 9, 0.5 + 0.05 * number) for number in range(40)]
    for row, number in zip(rows, range(40), strict=True):
        row["key"] = str(number)
    for modality in MODALITIES:
        options = {"max_completion_length": 12, "batch_size": 40}
        ours, theirs = (list(complete(one, processor, rows, modality, **options)) for one in (engine, model))
        assert ours == theirs and len({done.ids for done in ours}) > 5
