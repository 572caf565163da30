"""Intervals, tests and word errors against what can be computed by hand or by scipy."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_trl.data.word_errors import names_reference, word_errors
from tars_trl.evaluation.metrics import (
    average_result,
    bootstrap_interval,
    mcnemar,
    paired_result,
    standard_error,
    wilson_interval,
)


def test_wilson_interval():
    """Against the published example 8 of 10, and the edges."""
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="over 0 questions"):
        wilson_interval(0, 0)


def test_standard_error_is_lm_evaluation_harness_s():
    """Its mean_stderr: sample deviation (n - 1) over the root of n."""
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    mean = 0.6
    expected = math.sqrt(sum((value - mean) ** 2 for value in values) / 4) / math.sqrt(5)
    assert standard_error(values) == pytest.approx(expected)
    assert standard_error([1.0]) == 0


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    """Twice the smaller tail of fair coin tosses, in whole numbers."""
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    result = mcnemar(first, second)
    assert (result["only_first"], result["only_second"]) == (only_first, only_second)
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    assert result["p_value"] == pytest.approx(min(1, 2 * tail / 2**total), abs=1e-9)  # float64


def test_mcnemar_on_a_large_benchmark():
    assert 0 <= mcnemar([True] * 5000, [False] * 5000)["p_value"] < 1e-300
    with pytest.raises(ValueError, match="2 and 1 answers cannot be paired"):
        mcnemar([True, True], [True])


def test_bootstrap_is_seeded_and_agrees_with_the_normal_interval():
    generator = random.Random(0)
    values = [float(generator.random() < 0.7) for _ in range(400)]
    low, high = bootstrap_interval([values], seed=0)
    assert (low, high) == bootstrap_interval([values], seed=0) != bootstrap_interval([values], seed=1)
    mean, error = np.mean(values), standard_error(values)
    # The ends of 1,000 resamples are within 0.2 standard errors of the normal ones (0.05 seen).
    assert low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_bootstrap_draws_questions_whole():
    """Two columns that differ by a constant keep that difference in every resample; one question is a point."""
    values = [float(number) for number in range(30)]
    shifted = [value + 2 for value in values]
    assert bootstrap_interval([values, shifted], lambda a, b: b - a, seed=3) == pytest.approx((2, 2))
    assert bootstrap_interval([[0.25]], seed=0) == (0.25, 0.25)


def test_bootstrap_of_an_undefined_ratio():
    assert bootstrap_interval([[1.0, 0.0], [0.0, 0.0]], lambda h, r: h / r, seed=0) is None


def test_recovery_is_of_own_text_and_mrr_of_the_base_model_s():
    speech, text = [True, False, False, True], [True, True, False, True]
    own = paired_result(speech, text)
    assert (own["gap"], own["recovery"], own["mrr"]) == (0.25, pytest.approx(100 * 2 / 3), None)
    given_one = paired_result(speech, text, reference_accuracy=80.0)
    assert (given_one["mrr"], given_one["reference_accuracy"]) == (pytest.approx(62.5), 80)
    assert given_one["mrr_interval"] == pytest.approx([125 * end for end in wilson_interval(2, 4)])
    assert {name: given_one[name] for name in own if "mrr" not in name and "reference" not in name} == {
        name: own[name] for name in own if "mrr" not in name and "reference" not in name
    }
    nothing = paired_result([False], [False])
    assert nothing["recovery"] is None and nothing["recovery_interval"] is None and nothing["gap_interval"] == (0, 0)
    for pair in ((speech, text[:2]), ([], [])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_result(*pair)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits", "words"),
    [
        ("the cat sat", "the cat sat", 0, 3),
        ("the cat sat", "The cat, sat!", 0, 3),
        ("the cat sat", "the bat sat down", 2, 3),
        ("the cat sat", "", 3, 3),
        ("", "so", 1, 0),
        ("mister smith can't", "Mr. Smith can not", 0, 4),
        ("twenty three apples", "23 apples", 0, 2),
        ("well um yes", "well yes", 0, 2),
        ("colour", "color", 1, 1),  # British spelling needs Whisper's list, see metrics._normalizer
    ],
)
def test_word_errors(reference, hypothesis, edits, words):
    assert word_errors(reference, hypothesis) == (edits, words)


def test_names_reference():
    assert names_reference("Twenty-three", "I believe it is 23.")
    assert names_reference("the Eiffel Tower", "It's the Eiffel tower, of course")
    assert not names_reference("art", "a party")  # words, not letters
    assert not names_reference("", "anything") and not names_reference("yes", "")


def test_average_is_over_tasks_and_not_over_questions():
    """10 questions at 60 % and 40 at 80 % spoken are 70 %; the interval's ends add up as those of independent means."""
    small = paired_result([True] * 6 + [False] * 4, [True] * 8 + [False] * 2)
    large = paired_result([True] * 32 + [False] * 8, [True] * 36 + [False] * 4)
    average = average_result([small, large], 77.7)
    assert (average["questions"], average["speech_accuracy"], average["gap"]) == (
        50,
        pytest.approx(0.7),
        pytest.approx(0.15),
    )
    assert average["mrr"] == pytest.approx(100 * 0.7 / 0.777) and average["reference_accuracy"] == 77.7
    below = math.hypot(*(result["speech_accuracy"] - result["speech_interval"][0] for result in (small, large))) / 2
    assert average["speech_interval"][0] == pytest.approx(0.7 - below)
    assert average["mrr_interval"][0] == pytest.approx((0.7 - below) / 0.00777)
    low, high = (
        math.hypot(*(result["gap_interval"][end] - result["gap"] for result in (small, large))) for end in (0, 1)
    )
    assert average["gap_interval"] == pytest.approx((0.15 - low / 2, 0.15 + high / 2))
    own = average_result([small, large])
    assert own["recovery"] == pytest.approx(100 * 0.7 / 0.85) and own["mrr"] is own["mrr_interval"] is None
    assert average_result([paired_result([False], [False])] * 2)["recovery"] is None
