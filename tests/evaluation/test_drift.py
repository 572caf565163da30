"""Drift: batched and padded equals one row at a time; the files; what is held in memory."""

import json
import math
import weakref

import pytest
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cosine_similarity

from tars_trl.data.audio import load_audio
from tars_trl.data.prompts import spoken_prompt, written_prompt
from tars_trl.errors import NotLoggedError, SettingError
from tars_trl.evaluation.drift import layer_set_stats, layer_stats, measure_drift, pooled_change, read_layer_stats
from tars_trl.evaluation.metrics import paired_result
from tests.conftest import question, questions

COMPLETIONS = {
    "q0": "The answer is A.",
    "q1": "one plus two",
    "q2": "You think, then answer. A. B. C. D. A. B.",
    "q3": "B",
}


def naive(model, processor, row, completion):
    """Both similarities (L,) of one question: two passes of single, unpadded rows that return all hidden states."""
    ids = torch.tensor([processor.tokenizer(completion, add_special_tokens=False)["input_ids"]])
    states = []
    for spoken in (False, True):
        conversation = (spoken_prompt if spoken else written_prompt)(row["prompt"])
        text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=text, audio=[load_audio(row["audio"])] if spoken else None, return_tensors="pt")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[1:]
        states.append(torch.stack([layer[0, -ids.size(1) :] for layer in hidden]))  # (L, T, H)
    text, speech = states
    return cosine_similarity(text, speech, dim=-1).mean(1), cosine_similarity(text.mean(1), speech.mean(1), dim=-1)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_equals_one_row_at_a_time(tiny, batch_size):
    model, processor = tiny
    drift = measure_drift(model, processor, list(questions(4)), COMPLETIONS, batch_size=batch_size)
    assert drift.keys == ["q0", "q1", "q2", "q3"] and drift.by_token.shape == drift.pooled.shape == (4, 3)
    for number, key in enumerate(drift.keys):
        by_token, pooled = naive(model, processor, question(number), COMPLETIONS[key])
        # float32 noise of other matrix shapes, measured 2e-7
        torch.testing.assert_close(drift.by_token[number], by_token, rtol=0, atol=2e-5)
        torch.testing.assert_close(drift.pooled[number], pooled, rtol=0, atol=2e-5)
    assert (drift.by_token - drift.pooled)[:3].abs().max() > 1e-3  # the two are not the same thing ...
    torch.testing.assert_close(drift.by_token[3], drift.pooled[3])  # ... but over one token they are
    assert len(processor.tokenizer("B")["input_ids"]) == 1
    assert drift.baseline.shape == (4, 3) and not torch.allclose(drift.baseline, drift.pooled, atol=1e-3)
    assert pooled_change(drift, drift).abs().max() == 0
    alone = measure_drift(model, processor, list(questions(1)), COMPLETIONS)
    assert alone.baseline.isnan().all()


def test_no_layer_outlives_the_next(tiny):
    """While a layer runs, at most its own and its input's states are alive: never a (layers, rows, tokens, H) stack."""
    model, processor = tiny
    outputs: list = []
    alive = []

    def hook(_module, _args, output):
        outputs.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
        alive.append(sum(reference() is not None for reference in outputs))

    for layer in model.model.language_model.layers:
        layer.register_forward_hook(hook)
    measure_drift(model, processor, list(questions(2)), COMPLETIONS, batch_size=2)
    assert len(alive) == len(model.model.language_model.layers) and max(alive) <= 2


def test_questions_without_a_completion_are_skipped_and_the_model_is_left_as_it_was(tiny):
    model, processor = tiny
    model.train()
    seen = []
    drift = measure_drift(model, processor, list(questions(3)), {"q1": "A.", "q2": ""}, on_batch=seen.append)
    assert (drift.keys, drift.skipped, seen) == (["q1"], ["q0", "q2"], [1])
    assert model.training and not model.model.language_model.layers[0]._forward_hooks
    with pytest.raises(ValueError, match="None of the 3 questions has a completion.*samples file"):
        measure_drift(model, processor, list(questions(3)), {"other": "A."})


def test_stats_and_their_file(tmp_path):
    similarity = torch.tensor([[1.0, 0.5], [0.8, 0.5], [0.6, 0.5], [0.6, 0.9]])
    stats = layer_stats(similarity)
    assert stats["layers"] == [0, 1] and stats["means"] == pytest.approx([0.75, 0.6])
    half = 1.96 * similarity[:, 0].std().item() / math.sqrt(4)
    assert stats["ci_lower"][0] == pytest.approx(0.75 - half) and stats["ci_upper"][0] == pytest.approx(0.75 + half)

    file = tmp_path / "layer_stats.json"
    file.write_text(json.dumps({**stats, "questions": 4}))
    assert read_layer_stats(file) == stats
    for broken in (json.dumps({**stats, "means": [1.0]}), json.dumps({**stats, "means": 1}), "[]", "{", "{}"):
        file.write_text(broken)
        with pytest.raises(NotLoggedError, match="no layer_stats.json.*analyze-drift"):
            read_layer_stats(file)


def test_layer_sets_are_means_over_their_layers():
    similarity = torch.rand(5, 32, generator=torch.Generator().manual_seed(0))
    sets = layer_set_stats(similarity)
    assert set(sets) == {"all", "shallow", "middle", "deep", "last"}
    assert sets["shallow"]["mean"] == pytest.approx(similarity[:, :10].mean().item())
    assert sets["last"]["mean"] == pytest.approx(similarity[:, 30:].mean().item())
    assert sets["all"]["ci_lower"] < sets["all"]["mean"] < sets["all"]["ci_upper"]


def test_figure_3_is_drawn_from_evaluations(tmp_path, monkeypatch):
    from tars_trl.commands import analyze_drift

    for name, speech in (("last", [True, False]), ("all", [True, True])):
        (tmp_path / name).mkdir()
        pair = paired_result(speech, [True, True])
        (tmp_path / name / "results_1.json").write_text(json.dumps({"results": {}, "pairs": {"demo": pair}}))
    drawn = {}
    monkeypatch.setattr(analyze_drift, "plot_layer_sets", lambda results: drawn.update(results) or Figure())
    sets = [f"last={tmp_path / 'last' / 'results_1.json'}", f"all={tmp_path / 'all'}"]
    analyze_drift.main(["--output_dir", str(tmp_path / "out"), "--layer_sets", *sets])
    assert {name: result["speech_accuracy"] for name, result in drawn.items()} == {"last": 0.5, "all": 1.0}
    assert (tmp_path / "out" / "layer_sets.png").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--dataset", ""], "models, stats and layer_sets are empty"),
        (["--models", "runs/demo"], "models='runs/demo' has no plain name"),
        (["--models", "a=x", "--stats", "=layer_stats.json"], "stats='=layer_stats.json' has no plain name"),
        (["--models", "a=x", "--dataset", ""], "models are given without a dataset"),
        (["--layer_sets", "all=x", "all=y"], "names two things alike"),
        (["--models", "a/b=x"], "models='a/b=x' has no plain name"),  # it names a folder
        (["--models", "..=x"], r"models='\.\.=x' has no plain name"),
        (["--models", "a=runs/nowhere/x"], "models='runs/nowhere/x': there is no such folder"),
        (["--models", "a=.", "--completions", "nowhere.jsonl"], "completions='nowhere.jsonl' cannot be read"),
        (["--models", "a=.", "--completions", __file__], "completions=.* holds no written completions"),
    ],
)
def test_what_has_no_name_is_refused(tmp_path, given, message):
    from tars_trl.commands import analyze_drift

    with pytest.raises(SettingError, match=message):
        analyze_drift.main(["--output_dir", str(tmp_path / "out"), "--dataset", "x", *given])
    assert not (tmp_path / "out").exists()


def test_matplotlib_is_looked_for_at_the_start(tmp_path, monkeypatch):
    from tars_trl.commands import analyze_drift

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(analyze_drift, "chosen_questions", None)
    with pytest.raises(ImportError, match="matplotlib, which is not installed. .*pip install"):
        analyze_drift.main(["--output_dir", str(tmp_path), "--dataset", "x", "--models", "a=some/model"])
