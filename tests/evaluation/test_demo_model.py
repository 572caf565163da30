"""The evaluation of the model and questions that the repository carries, as the README's command does it."""

from pathlib import Path

from tars_trl.evaluation.results import read_results
from tars_trl.evaluation.run import evaluate
from tars_trl.evaluation.settings import EvaluationSettings
from tests.conftest import ROOT


def test_demo_model_is_evaluated_in_both_modalities(tmp_path):
    settings = EvaluationSettings(
        model=str(ROOT / "recipes" / "demo" / "tiny-omni"),
        tasks="demo",
        modality="both",
        limit=12,
        max_new_tokens=64,
        log_samples=True,
        output_path=str(tmp_path),
    )
    written = evaluate(settings)
    results = read_results(written)["results"]
    assert set(results) == {"demo_speech", "demo_text"}
    assert results["demo_text"]["acc,none"] >= 0.9 and 0 < results["demo_speech"]["acc,none"] <= 1
    assert len(list(Path(tmp_path).rglob("samples_demo_*.jsonl"))) == 2
