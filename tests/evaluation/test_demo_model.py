"""The evaluation of the model and questions that the repository carries, as the README's command does it."""

from pathlib import Path

import pytest

from tars_trl import EvaluationSettings, evaluate
from tars_trl.evaluation.results import read_pair, read_results
from tests.conftest import ROOT


def test_demo_model_is_evaluated_in_both_modalities(tmp_path):
    settings = EvaluationSettings(
        model=str(ROOT / "recipes" / "demo" / "tiny-omni"),
        tasks=[f"demo={ROOT / 'recipes' / 'demo' / 'questions'}"],
        domain="voice",
        modality=["both"],
        limit=12,
        max_completion_length=64,
        log_samples=True,
        output_dir=str(tmp_path),
    )
    written = evaluate(settings)
    results = read_results(written)["results"]
    assert set(results) == {"demo_speech", "demo_text"}
    assert results["demo_text"]["acc,none"] >= 0.9 and 0 < results["demo_speech"]["acc,none"] <= 1
    voices = read_results(written)["domains"]["demo_text"]
    assert len(voices) > 1 and sum(voice["n"] for voice in voices.values()) == 12
    gap = results["demo_text"]["acc,none"] - results["demo_speech"]["acc,none"]
    assert read_pair(tmp_path)["gap"] == pytest.approx(gap)
    assert len(list(Path(tmp_path).rglob("samples_demo_*.jsonl"))) == 2
