import pytest

from tars_trl.data.prompts import question_key, spoken_prompt, written_prompt
from tars_trl.grpo.alignment import choose_references
from tars_trl.grpo.twins import modality_of, reference_candidates

PROMPT = [
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "An earlier question"},
    {"role": "assistant", "content": "An answer"},
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "text", "text": "Answer briefly."}]},
]


def test_first_half_of_a_group_is_spoken():
    assert [modality_of(row, 4) for row in range(8)] == ["speech", "speech", "text", "text"] * 2
    assert modality_of(3, 4, "speech") == "speech" and modality_of(0, 4, "text") == "text"


def test_only_the_last_question_is_spoken():
    """System prompt, earlier turns and the instruction stay the same text in both twins."""
    spoken, written = spoken_prompt(PROMPT), written_prompt(PROMPT)
    assert spoken[:3] == written[:3]
    assert spoken[3]["content"] == [{"type": "audio"}, {"type": "text", "text": "Answer briefly."}]
    assert written[3]["content"][0] == {"type": "text", "text": "What is it?"}
    shown = spoken_prompt(PROMPT, transcript=True)[3]["content"][0]
    assert shown == {"type": "audio", "text": "What is it?"}
    assert PROMPT[0]["content"] == "Think."  # the row itself is left alone


def test_columns_that_a_data_set_filled_up_do_not_reach_the_template():
    """Arrow gives every part all keys; a template that asks `'audio' in part` would take text for audio."""
    parts = [{"type": "text", "text": "Why?", "audio": None, "image": None}]
    assert written_prompt([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    ]


@pytest.mark.parametrize("prompt", [[{"role": "system", "content": "x"}], [{"role": "user", "content": []}]])
def test_a_prompt_without_a_question_is_refused(prompt):
    with pytest.raises(ValueError, match="no user turn with a text part"):
        spoken_prompt(prompt)


def test_question_key():
    assert question_key({"key": 7, "prompt": []}) == "7"
    one, other = ({"prompt": [{"role": "user", "content": text}]} for text in "ab")
    assert question_key(one) == question_key(dict(one)) != question_key(other)


def test_candidates_are_usable_written_rows_of_the_question():
    usable = [True, True, False, True, True, False, False, False, False, True, True, True]
    assert reference_candidates(usable, 4) == [[3], [], [10, 11]]


def test_references_belong_to_their_question():
    candidates = [[2, 3], [], [10]]
    references = choose_references(candidates, ["a", "b", "c"], 4, how="random", seed=0, step=0)
    assert all(row in (2, 3) for row in references[:2]) and references[2:8] == [-1] * 6
    assert references[8:] == [10, 10, -1, -1]
    assert choose_references(candidates, ["a", "b", "c"], 4, how="first", seed=0, step=0)[:2] == [2, 2]


def test_draw_depends_on_seed_step_and_question_alone():
    """Not on what else is in the batch, nor on the order of calls; each of the three arguments changes it."""
    candidates = [list(range(8, 16))]

    def draw(key="a", seed=0, step=0, before=0):
        filler = [[16 * n + 8] for n in range(before)]
        keys = [f"filler {n}" for n in range(before)]
        rows, keys = filler + candidates, [*keys, key]
        return choose_references(rows, keys, 16, how="random", seed=seed, step=step)[16 * before :][:8]

    assert draw() == draw() == draw(before=3)
    assert len({tuple(draw(**change)) for change in ({}, {"key": "b"}, {"seed": 1}, {"step": 1})}) == 4


def test_copies_of_a_question_draw_independently():
    rows = list(range(8, 16))
    references = choose_references([rows, [row + 16 for row in rows]], ["a", "a"], 16, how="random", seed=0, step=0)
    assert references[:8] != [row - 16 for row in references[16:24]]
