"""Questions in the order of a column instead of a shuffled one."""

import pytest

from tests.conftest import questions


def test_questions_come_in_the_columns_order(make_trainer):
    level = [3, 0, 2, 1]
    trainer = make_trainer(dataset=questions(4).add_column("level", level), curriculum="level")
    seen = [batch[0]["key"] for batch in trainer.get_train_dataloader()]
    assert seen == ["q1", "q3", "q2", "q0"]
    assert [batch[0]["key"] for batch in make_trainer().get_train_dataloader()] != ["q0", "q1", "q2", "q3"]  # shuffled


def test_a_missing_column_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"curriculum='level' is no column .*answer_index.*Name one that is"):
        make_trainer(curriculum="level")


@pytest.mark.parametrize("value", [None, float("nan"), "easy"])
def test_a_row_that_cannot_be_ordered_is_named(make_trainer, value):
    level = ["a", value, "b", "c"] if isinstance(value, str) else [3.0, value, 2.0, 1.0]
    with pytest.raises(ValueError, match=r"curriculum='level': row 'q[01]' has .*Give every row a number"):
        make_trainer(dataset=questions(4).add_column("level", level), curriculum="level")
