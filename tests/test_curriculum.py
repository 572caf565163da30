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
