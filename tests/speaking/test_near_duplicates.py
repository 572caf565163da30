"""Near-duplicates: the index finds exactly what a comparison of all pairs finds."""

import random

import pytest

from tars_trl.speaking.near_duplicates import near_duplicates, question_text, shingles


def all_pairs(texts, others, threshold):
    found = {}
    for number, text in enumerate(texts):
        for other, theirs in enumerate(others):
            a, b = shingles(text), shingles(theirs)
            similarity = len(a & b) / len(a | b) if a | b else 0.0
            if similarity >= threshold and similarity > found.get(number, (0, 0.0))[1]:
                found[number] = (other, similarity)
    return found


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.6, 0.9, 1.0])
def test_equals_the_comparison_of_all_pairs(threshold):
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcd", k=draw.randint(0, 8))) for _ in range(150)]
    others = [" ".join(draw.choices("abcd", k=draw.randint(0, 8))) for _ in range(150)]
    expected = all_pairs(texts, others, threshold)
    assert near_duplicates(texts, others, threshold=threshold) == expected
    assert expected


def test_wording_case_and_order_of_options_do_not_hide_a_leak():
    train = question_text("Which planet is the third from the Sun?", ["Mars", "Earth", "Venus", "Saturn"])
    test = question_text("which planet is third from the Sun", ["earth", "Saturn", "Mars", "Venus"])
    other = question_text("Which planet is the largest of all?", ["Mars", "Earth", "Venus", "Jupiter"])
    assert list(near_duplicates([other, train], [test])) == [1]


def test_labels_before_options_do_not_hide_a_leak():
    train = question_text("Which city is it?", ["A. Paris", "B. Rome", "C. Bern", "D. Oslo"])
    test = question_text("Which city is it?", ["Rome", "Oslo", "Paris", "Bern"])
    assert near_duplicates([train], [test]) == {0: (0, 1.0)}


def test_the_same_question_with_other_options_is_another_one():
    first = question_text("Which is true?", ["cats bark at night", "dogs fly over the sea"])
    second = question_text("Which is true?", ["ice is a warm metal", "gold melts in the cold rain"])
    assert near_duplicates([first], [second]) == {}


def test_threshold_out_of_range():
    with pytest.raises(ValueError, match="threshold=0"):
        near_duplicates(["a"], ["a"], threshold=0)
