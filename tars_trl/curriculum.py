"""Training questions in the order of a column, where they would be shuffled."""

from datasets import Dataset


def ordered_by(dataset: Dataset, column: str) -> Dataset:
    """`dataset` by the numbers in `column`, ascending; equal ones stay in the order they came.

    Raises:
        ValueError: no such column, or a row without a number there.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"curriculum={column!r} is no column of the training questions ({', '.join(dataset.column_names)}), so "
            "they cannot be ordered by it. Name one that is, or leave it out to shuffle."
        )
    level = dataset[column][:]
    for number, value in enumerate(level):
        if not isinstance(value, int | float) or value != value:
            raise ValueError(
                f"curriculum={column!r}: row {dataset[number].get('key', number)!r} has {value!r} there, which cannot "
                "be ordered. Give every row a number, such as recipes/score_questions.py writes."
            )
    return dataset.select(sorted(range(len(level)), key=level.__getitem__))
