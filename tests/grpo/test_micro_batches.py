"""Rows of one twin come into one micro-batch, and no row is lost."""

import torch
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from tars_trl.grpo.micro_batches import twins_together


def generation(twins=4, rows=4):
    """A generation of spoken and written twins as TRL's trainer returns it; prompts of different length."""
    count = twins * rows
    twin = torch.arange(count) // rows
    clips = [torch.full((2, 3), float(number)) for number in range(twins)]
    columns = torch.arange(6)
    mask = (columns >= twin.unsqueeze(1) % 3).long()
    return {
        "prompt_ids": (7 + twin.unsqueeze(1) // 2 + columns) * mask,  # the same of two twins, which differ by the clip
        "prompt_mask": mask,
        "completion_ids": torch.arange(count).unsqueeze(1),
        "advantages": torch.arange(count) / 10,
        "num_items_in_batch": torch.tensor(50),
        "old_per_token_logps": None,
        "audio": [clips[number] if number % 2 == 0 else None for number in twin.tolist()],
    }


def test_rows_of_a_twin_lie_together():
    torch.manual_seed(0)
    shuffled = split_tensor_dict(shuffle_sequence_dict(generation()), 4)
    assert any(len(set((batch["completion_ids"] // 4).flatten().tolist())) > 1 for batch in shuffled)
    batches = twins_together(shuffled)
    twins = [(batch["completion_ids"] // 4).flatten().tolist() for batch in batches]
    assert all(len(set(numbers)) == 1 and len(numbers) == 4 for numbers in twins)
    assert sorted(numbers[0] for numbers in twins) == [0, 1, 2, 3]


def test_every_row_keeps_what_belongs_to_it():
    torch.manual_seed(1)
    whole = generation()
    batches = twins_together(split_tensor_dict(shuffle_sequence_dict(whole), 8))
    rows = [int(row) for batch in batches for row in batch["completion_ids"]]
    assert sorted(rows) == list(range(16)) and len(batches) == 8
    for batch in batches:
        assert batch["num_items_in_batch"] == 50 and batch["old_per_token_logps"] is None
        for place, row in enumerate(batch["completion_ids"].flatten().tolist()):
            assert torch.equal(batch["prompt_ids"][place], whole["prompt_ids"][row])
            assert batch["advantages"][place] == whole["advantages"][row]
            assert batch["audio"][place] is whole["audio"][row]


def test_twins_stay_shuffled():
    """Their order is the shuffle's, not the data set's."""
    orders = set()
    for seed in range(8):
        torch.manual_seed(seed)
        batches = twins_together(split_tensor_dict(shuffle_sequence_dict(generation()), 4))
        orders.add(tuple(int(batch["completion_ids"][0]) // 4 for batch in batches))
    assert len(orders) > 3
