"""A tiny random speech LLM as a folder, questions as a folder, and the evaluation's command line on them."""

import json

import pytest
from evaluate import main

from tars_trl.cli import parse
from tars_trl.evaluation.results import read_results, read_samples, results_file
from tars_trl.evaluation.run import evaluate
from tars_trl.evaluation.settings import EvaluationSettings
from tests.conftest import questions


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """The random thinker with its processor, saved; its layers enlarged, so that a completion depends on the prompt."""
    from tiny_omni import tiny_random

    model, processor = tiny_random(0)
    for weight in model.model.language_model.layers.parameters():
        weight.data.mul_(8)  # as it is, the tied embeddings repeat the last token of any prompt
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def questions_folder(tmp_path_factory) -> str:
    """Six questions of the schema, with two domains, as a folder of parquet shards."""
    folder = tmp_path_factory.mktemp("asked")
    rows = questions(6).add_column("voice", ["high", "low"] * 3)
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def arguments(model_folder, questions_folder, tmp_path) -> list[str]:
    """The command line that most tests start from."""
    return [
        *("--model", model_folder, "--tasks", f"demo={questions_folder}", "--batch_size", "2"),
        *("--max_new_tokens", "6", "--use_cpu", "--log_samples", "--output_path", str(tmp_path / "out")),
    ]


@pytest.fixture
def run(arguments, capsys):
    """Run `recipes/evaluate.py` with more arguments; returns (results, samples by task, printed table)."""

    def run(*more: str):
        main([*arguments, *more])
        printed = capsys.readouterr().out
        path = results_file(
            next(part for part in printed.split() if part.endswith(".json") or part.endswith(".json.")).rstrip(".")
        )
        return read_results(path), read_samples(path), printed

    return run


@pytest.fixture
def evaluated(arguments):
    """Only the evaluation, without the table; returns the path of the results file."""

    def evaluated(*more: str):
        (settings,) = parse(EvaluationSettings, args=[*arguments, *more])
        return evaluate(settings)

    return evaluated


@pytest.fixture
def canned(monkeypatch):
    """Let the model answer as given: {(key, modality): text}; whatever is missing is answered with nothing."""
    from tars_trl.evaluation.completions import Completion

    def canned(answers: dict[tuple[str, str], str]):
        asked = []

        def complete(model, processor, rows, modality, **settings):
            for row in rows:
                asked.append((row["key"], modality, json.dumps(row["prompt"])))
                text = answers.get((row["key"], modality), "")
                yield Completion(row["key"], modality, text, len(text.split()) + 1, text.endswith("…"))

        monkeypatch.setattr("tars_trl.evaluation.run.complete", complete)
        monkeypatch.setattr("tars_trl.evaluation.cascade.complete", complete)
        return asked

    return canned
