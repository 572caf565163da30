"""An export that answers otherwise is found out, in its own process; one that does not is let through."""

import dataclasses

import pytest
import torch

from tars_trl.errors import ExportError
from tars_trl.models import architecture_of
from tars_trl.models.loading import load_speech_llm
from tars_trl.models.prompting import base_of
from tars_trl.share.export import write_export
from tars_trl.share.verify import Answer, check_answers, forced_logits, greedy_answers, untrained_logits, verify_folder
from tests.conftest import question
from tests.models.tiny import ARCHITECTURES
from tests.trained import checkpoint

QUESTIONS = [("speech", question(0)), ("text", question(1))]


@pytest.fixture(params=ARCHITECTURES)
def run(request, tmp_path):
    return checkpoint(*ARCHITECTURES[request.param](0), tmp_path)


def changed(answer, **values):
    return dataclasses.replace(answer, **values)


def made_up(spread=1.0):
    """Trained and untrained answer to one question: five tokens, each preferred by a clear margin."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(5, 50, generator=generator)
    ids = [3, 1, 4, 1, 5]
    logits[range(5), ids] = 8 * spread
    untrained = logits + 0.1 * spread * torch.randn(5, 50, generator=generator)
    return Answer("q0", "speech", ids, "three one four", logits), untrained


def test_answers_are_greedy_under_their_own_logits(run):
    model, processor = load_speech_llm(str(run))
    answers = greedy_answers(model, processor, QUESTIONS, 6)
    assert [answer.modality for answer in answers] == ["speech", "text"] and answers[0].ids != []
    for answer in answers:
        logits = answer.logits.clone()
        assert logits.shape[0] == len(answer.ids) <= 6
        logits[:, [i for i in (answer.logits.argmax(-1)).tolist() if i not in answer.ids]] = -torch.inf  # suppressed
        assert logits.argmax(-1).tolist() == answer.ids
    forced = forced_logits(model, processor, QUESTIONS, [answer.ids for answer in answers])
    for answer, logits in zip(answers, forced, strict=True):
        torch.testing.assert_close(answer.logits, logits, rtol=0, atol=1e-5)
    untrained = untrained_logits(model, processor, QUESTIONS, answers)
    assert all((a.logits - u).abs().max() > 1e-2 for a, u in zip(answers, untrained, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_merged_exports_pass_and_the_base_does_not(run, tmp_path, dtype):
    """Without the fresh process: what the tolerances let through, in each stored type."""
    model, processor = load_speech_llm(str(run))
    expected = greedy_answers(model, processor, QUESTIONS, 6)
    untrained = untrained_logits(model, processor, QUESTIONS, expected)
    write_export(model, processor, tmp_path / "out", "merged", dtype=dtype)

    def answers_of(folder):
        return greedy_answers(*load_speech_llm(str(folder)), QUESTIONS, 6, [answer.ids for answer in expected])

    verdict = check_answers(expected, answers_of(tmp_path / "out"), untrained, dtype)
    # Rounding sends tokens of a mixture to other experts.
    mixture = architecture_of(base_of(model).config.model_type).router is not None
    assert verdict["logits"] < verdict["tolerance"] / (1 if mixture else 5) and verdict["lost"] < 0.1
    with pytest.raises(ExportError, match="of their spread on the speech question 'q0'|is gone in the exported model"):
        check_answers(expected, answers_of(run.parent / "base"), untrained, dtype)


@pytest.mark.slow
def test_fresh_process_verifies(run, tmp_path):
    model, processor = load_speech_llm(str(run))
    expected = greedy_answers(model, processor, QUESTIONS, 6)
    write_export(model, processor, tmp_path / "out", "merged")
    assert verify_folder(str(tmp_path / "out"), QUESTIONS, expected, max_completion_length=6)["logits"] < 1e-4
    with pytest.raises(ExportError, match="speech question 'q0'"):
        verify_folder(str(run.parent / "base"), QUESTIONS, expected, max_completion_length=6)


def test_equal_answers_pass():
    answer, untrained = made_up()
    assert check_answers([answer], [answer], [untrained], "float32") == {"logits": 0, "tolerance": 1e-3, "lost": 0}


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_tolerance_is_relative_to_the_spread(spread):
    answer, _ = made_up(spread)
    wide = answer.logits.std()
    check_answers([answer], [changed(answer, logits=answer.logits + 0.9e-3 * wide)], None, "float32")
    with pytest.raises(ExportError, match=r"by 0.0011 of their spread .* 0.001 is allowed for float32"):
        check_answers([answer], [changed(answer, logits=answer.logits + 1.1e-3 * wide)], None, "float32")


def test_not_a_number_is_a_difference():
    answer, _ = made_up()
    logits = answer.logits.clone()
    logits[0, 0] = torch.nan
    with pytest.raises(ExportError, match="nan of their spread"):
        check_answers([answer], [changed(answer, logits=logits)], None, "bfloat16")


def test_another_answer_is_a_difference_unless_it_was_a_tie():
    answer, _ = made_up()
    other = changed(answer, ids=[3, 1, 7, 1, 5], text="three one seven")
    with pytest.raises(ExportError, match="with 'three one seven', the trained one with 'three one four'"):
        check_answers([answer], [other], None, "bfloat16")
    with pytest.raises(ExportError, match="answers the speech question"):
        check_answers([answer], [changed(answer, ids=answer.ids[:3])], None, "bfloat16")
    tied = answer.logits.clone()
    tied[2, 7] = tied[2, 4] - 1e-3
    check_answers([changed(answer, logits=tied)], [changed(other, logits=tied)], None, "bfloat16")


def test_lost_training_is_a_difference():
    """Within the tolerance, yet nearer to the untrained model: the change was too small for the type."""
    answer, untrained = made_up()
    mostly_lost = answer.logits + 0.6 * (untrained - answer.logits)
    with pytest.raises(ExportError, match="60% of what training changed"):
        check_answers([answer], [changed(answer, logits=mostly_lost)], [untrained], "bfloat16")
    kept = answer.logits + 0.4 * (untrained - answer.logits)
    verdict = check_answers([answer], [changed(answer, logits=kept)], [untrained], "bfloat16")
    assert verdict["lost"] == pytest.approx(0.4, abs=1e-3)
    check_answers([answer], [answer], [answer.logits], "bfloat16")  # training that changed nothing loses nothing
