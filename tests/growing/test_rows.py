"""Growing rows: old rows to the bit, new rows where the chosen start says, exactly as many as pieces."""

from __future__ import annotations

import torch

from yangtuo.growing.cooccurrence import count_cooccurrence
from yangtuo.growing.rows import GrownTensors, NewRows, grow

OLD = torch.arange(12, dtype=torch.float32).reshape(4, 3)


class Tensors:
    """Three tensors in memory."""

    def __init__(self) -> None:
        self._tensors = {
            "model.embed_tokens.weight": OLD,
            "model.norm.weight": torch.ones(3),
            "lm_head.weight": OLD.to(torch.bfloat16) * 2,
        }

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def get(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def test_subtoken_mean_is_the_mean_of_the_sources_and_of_all_where_there_are_none() -> None:
    grown = grow(OLD, NewRows(4, [[0, 2], [3], []], "subtoken-mean", 0))
    assert torch.equal(grown[:4], OLD)
    assert torch.equal(grown[4], torch.tensor([3.0, 4.0, 5.0]))
    assert torch.equal(grown[5], OLD[3])
    assert torch.equal(grown[6], OLD.mean(dim=0))


def test_exponential_looks_at_the_end_in_an_embedding_and_at_the_beginning_in_a_head() -> None:
    rows = NewRows(4, [[0, 3]], "exponential", 0)
    torch.testing.assert_close(grow(OLD, rows, "embedding")[4], (OLD[0] + 2 * OLD[3]) / 3)
    torch.testing.assert_close(grow(OLD, rows, "head")[4], (2 * OLD[0] + OLD[3]) / 3)
    torch.testing.assert_close(grow(OLD, rows, "tied")[4], (OLD[0] + OLD[3]) / 2)
    grown = GrownTensors(Tensors(), rows)
    torch.testing.assert_close(grown.get("model.embed_tokens.weight")[4], (OLD[0] + 2 * OLD[3]) / 3)


def test_mean_is_of_kept_rows_only() -> None:
    """Rows that pad a vocabulary are no pieces, and would pull the mean aside."""
    grown = grow(OLD, NewRows(2, [[0]], "mean", 0))
    assert grown.shape == (3, 3) and torch.equal(grown[2], OLD[:2].mean(dim=0))


def test_random_rows_follow_the_seed_and_the_old_spread() -> None:
    old = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * 0.02
    rows = NewRows(500, [[0]] * 300, "random", 5)
    grown = grow(old, rows)
    assert torch.equal(grow(old, rows), grown)
    assert not torch.equal(grow(old, NewRows(500, [[0]] * 300, "random", 6)), grown)
    assert abs(grown[500:].std() / old.std() - 1) < 0.05


def test_dtype_is_kept_and_means_are_taken_in_float32() -> None:
    """In bfloat16 sums, the mean of many rows drifts."""
    old = torch.full((300, 2), 1.0078125, dtype=torch.bfloat16)
    grown = grow(old, NewRows(300, [list(range(300))], "subtoken-mean", 0))
    assert grown.dtype == torch.bfloat16 and torch.equal(grown[300], old[0])


def test_only_embedding_and_head_grow() -> None:
    tensors = GrownTensors(Tensors(), NewRows(4, [[0, 2]], "subtoken-mean", 0))
    shapes = {name: tensors.shape(name) for name in tensors.names()}
    assert shapes == {"model.embed_tokens.weight": (5, 3), "model.norm.weight": (3,), "lm_head.weight": (5, 3)}
    for name in tensors.names():
        assert tuple(tensors.get(name).shape) == shapes[name]
        assert tensors.get(name).dtype == tensors.dtype(name)
    assert torch.equal(tensors.get("lm_head.weight")[4], torch.tensor([6, 8, 10], dtype=torch.bfloat16))


def test_a_token_with_the_neighbours_of_another_starts_near_it() -> None:
    """Two languages in one text: the new word for cat stands where cat stands, in the embedding and in the head."""
    generator = torch.Generator().manual_seed(0)
    num_old = 40
    old = torch.randn(num_old, 16, generator=generator)
    documents = []
    for _ in range(400):
        words = torch.randint(0, num_old // 2, (12,), generator=generator) * 2
        noun = int(torch.randint(0, 4, (1,), generator=generator))
        # Each noun (ids 1, 3, 5, 7) stands between its own two neighbours; 40 ... 43 are other words for the nouns.
        new = bool(torch.randint(0, 2, (1,), generator=generator))
        documents.append([*words.tolist(), 11 + 2 * noun, 40 + noun if new else 1 + 2 * noun, 21 + 2 * noun])
    counted = count_cooccurrence(documents, 40, 45, dimensions=16)
    rows = NewRows(num_old, [[2], [2], [2], [2], [4]], "cooccurrence", 0, counted)
    for role in ("embedding", "head"):
        grown = grow(old, rows, role)
        assert torch.equal(grown[:num_old], old)
        nearest = torch.cdist(grown[40:44], old[1:8:2]).argmin(dim=1)
        assert nearest.tolist() == [0, 1, 2, 3]
        assert torch.equal(grown[44], old[4])  # never met in the text: the mean of its sources


def test_text_without_the_base_leaves_the_means_of_the_sources() -> None:
    counted = count_cooccurrence([[4, 5, 4, 5, 4]], 4, 6, dimensions=8)
    rows = NewRows(4, [[0], [1]], "cooccurrence", 0, counted)
    assert torch.equal(grow(OLD, rows, "embedding")[4:], OLD[:2])


def test_no_row_stands_further_out_than_old_ones_do() -> None:
    """Few known rows let the map overshoot: new pieces would be likelier than English in the middle of English."""
    generator = torch.Generator().manual_seed(2)
    old = torch.randn(12, 32, generator=generator)
    documents = [torch.randint(0, 40, (400,), generator=generator).tolist() for _ in range(3)]
    rows = NewRows(12, [[1]] * 28, "cooccurrence", 0, count_cooccurrence(documents, 12, 40, dimensions=32))
    known = old[(rows.counted.counts[:12] >= 10).nonzero().ravel()] if rows.counted else old
    grown = grow(old, rows, "head")
    assert len(known) > 2
    weights = rows.counted.counts[:12].clamp(max=200)[:, None] if rows.counted else torch.ones(12, 1)
    weights = weights * (weights >= 10)
    mean = (weights * old).sum(dim=0) / weights.sum()
    furthest = (grown[12:] - mean).norm(dim=1).max()
    assert furthest <= (known - mean).norm(dim=1).mean() * 1.0001


def test_old_rows_that_only_the_new_language_needs_are_related() -> None:
    """Its full stop learns with it; a line end that both need stays, and so does what the old language uses more."""
    theirs = [5, 0, 6, 0, 4, 2] * 20
    ours = [1, 2, 3, 2] * 2000 + [4]
    assert count_cooccurrence([theirs, ours], 5, 7, dimensions=4).related_rows(5) == [0, 4]
    assert count_cooccurrence([theirs, ours, [4, 1] * 3000], 5, 7, dimensions=4).related_rows(5) == [0]
    assert count_cooccurrence([theirs], 5, 7, dimensions=4).related_rows(5) == []  # nothing to compare with
