import pytest

from tars_trl.data.answers import extract_strict, is_well_formed
from tars_trl.grpo.rewards import accuracy_reward, format_reward

OPTIONS = ["red", "a blue one", "C", "green"]


@pytest.mark.parametrize(
    ("completion", "index"),
    [
        ("<think>x</think><answer>The answer is B.</answer>", 1),
        ("<think>x</think>\n<answer> the answer is: (d) </answer>", 3),
        ("<answer>A</answer>", 0),
        ("<answer>a blue one.</answer>", 1),
        ("<answer>The answer is green</answer>", 3),
        ("<think>maybe <answer>The answer is A.</answer></think><answer>The answer is B.</answer>", 1),
        ("<answer>B</answer> <answer>The answer is B.</answer>", 1),
        ("<answer>A</answer><answer>B</answer>", None),  # it has not decided
        ("<think>The answer is B.</think>", None),
        ("<answer>B", None),
        ("<answer></answer>", None),
        ("", None),
        ("<answer>Banana</answer>", None),
        ("<answer>The answer is E.</answer>", None),
        ("<answer>A or B</answer>", None),
        ("<answer>not B</answer>", None),
    ],
)
def test_strict_extraction(completion, index):
    assert extract_strict(completion, OPTIONS) == index


def test_an_option_text_that_is_another_options_letter():
    """The prompt asks for a letter, so a letter of the options is one, whatever their texts are."""
    blood = ["B", "A", "AB", "O"]
    said = {"The answer is B.": 1, "A": 0, "(b)": 1, "The answer is AB.": 2, "the answer is O": 3, "E": None}
    assert {answer: extract_strict(f"<answer>{answer}</answer>", blood) for answer in said} == said
    assert extract_strict("<answer>C</answer>", OPTIONS) == 2


def test_accuracy_reward():
    said = ["<answer>The answer is A.</answer>", [{"role": "assistant", "content": "<answer>B</answer>"}], "A"]
    assert accuracy_reward(said, answer_index=[0, 0, 0], options=[OPTIONS] * 3) == [1.0, 0.0, 0.0]
    assert accuracy_reward(said[:1], answer_index=[0], options=[OPTIONS], modality=["speech"]) == [1.0]


def test_without_a_right_option_nothing_is_right():
    assert accuracy_reward(["x", "<answer>A</answer>"], [None, None], options=[OPTIONS] * 2) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "formed"),
    [
        ("<think>It is.</think><answer>The answer is C.</answer>", True),
        ("<think>It\nis.</think>\n\n<answer>The answer is C</answer>\n", True),
        ("<think></think><answer>The answer is C.</answer>", False),
        ("<answer>The answer is C.</answer>", False),
        ("<think>a</think><think>b</think><answer>The answer is C.</answer>", False),
        ("<think>a</think><answer>C</answer>", False),
        ("<think>a</think><answer>The answer is C.</answer> So C.", False),
        ("Well: <think>a</think><answer>The answer is C.</answer>", False),
    ],
)
def test_format(completion, formed):
    assert is_well_formed(completion) is formed
    assert format_reward([completion]) == [float(formed)]
