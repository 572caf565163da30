"""A tiny random speech LLM as a folder, questions as a folder, and the evaluation's command line on them."""

import json

import pytest

from tars_trl import EvaluationSettings, evaluate
from tars_trl.commands.evaluate import main
from tars_trl.evaluation.results import read_results, read_samples, results_file
from tars_trl.settings import parse


@pytest.fixture
def arguments(model_folder, questions_folder, tmp_path) -> list[str]:
    """The command line that most tests start from."""
    return [
        *("--model", model_folder, "--tasks", f"demo={questions_folder}", "--batch_size", "2"),
        *("--max_completion_length", "6", "--use_cpu", "--log_samples"),
        *("--output_dir", str(tmp_path / "out")),
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
    from tars_trl.sampling.complete import Completion

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
