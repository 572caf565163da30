"""What attaches to a model is guarded: rows and what belongs to them never get out of step."""

import pytest
import torch
from torch import nn

from tars_trl.models.hooks import last_logits_only, placed_audio

AUDIO = 9


def embedding():
    torch.manual_seed(0)
    return nn.Embedding(10, 3)


def clip(length, value):
    return torch.full((length, 3), float(value))


def test_chunks_of_any_size_get_their_own_clips():
    layer, rows = embedding(), [clip(1, 1), None, clip(2, 3)]
    ids = torch.tensor([[AUDIO, 1, 2], [1, 2, 3], [1, AUDIO, AUDIO]])
    with placed_audio(layer, AUDIO, rows):
        whole = layer(ids)
        parts = torch.cat([layer(ids[:2]), layer(ids[2:])])
    assert torch.equal(whole, parts)
    assert whole[0, 0].tolist() == [1, 1, 1] and whole[2, 2].tolist() == [3, 3, 3]
    assert torch.equal(whole[1], nn.functional.embedding(ids[1], layer.weight))
    assert torch.equal(layer(ids), nn.functional.embedding(ids, layer.weight))  # taken away again


def test_leaving_in_the_middle_of_the_rows_is_an_error():
    layer = embedding()
    refusal = "Only 1 of 2 rows went through the model"
    with pytest.raises(RuntimeError, match=refusal), placed_audio(layer, AUDIO, [clip(1, 1), None]):
        layer(torch.tensor([[AUDIO, 1]]))
    assert not layer._forward_hooks


def test_an_error_inside_is_not_covered_by_another():
    layer = embedding()
    with pytest.raises(KeyError), placed_audio(layer, AUDIO, [clip(1, 1), None]):
        layer(torch.tensor([[AUDIO, 1]]))
        raise KeyError


def test_rows_that_were_expanded_are_refused():
    """Two sequences a prompt without two clips: silently, the second row would get the next question's clip."""
    layer = embedding()
    ids = torch.tensor([[AUDIO, 1]]).repeat(4, 1)
    refusal = "holds 4 rows where 2 of 2 are left. Rows that are expanded"
    with pytest.raises(RuntimeError, match=refusal), placed_audio(layer, AUDIO, [clip(1, 1), clip(1, 2)]):
        layer(ids)
    with placed_audio(layer, AUDIO, [clip(1, 1), clip(1, 1), clip(1, 2), clip(1, 2)]):
        assert layer(ids)[:, 0, 0].tolist() == [1, 1, 2, 2]


def test_a_pass_that_runs_past_the_last_row_is_refused():
    layer = embedding()
    ids = torch.tensor([[1, 2]])
    refusal = "holds 2 rows where 1 of 3 are left"
    with pytest.raises(RuntimeError, match=refusal), placed_audio(layer, AUDIO, [None] * 3):
        layer(ids.repeat(2, 1))
        layer(ids.repeat(2, 1))


def test_last_logits_only():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 5)

        def get_output_embeddings(self):
            return self.head

    model, states = Model(), torch.randn(2, 4, 3)
    with last_logits_only(model):
        assert torch.equal(model.head(states), model.head(states[:, -1:]))
    assert model.head(states).shape == (2, 4, 5)
