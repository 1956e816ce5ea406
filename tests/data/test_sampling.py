"""Shares are shares of the tokens, whatever documents they stand in, and the two sides share nothing."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from yangtuo.data.sampling import SPAN, Spans, num_tokens, take_share


def spans_of(lengths: list[int] | npt.NDArray[np.int64]) -> Spans:
    spans = np.zeros(len(lengths), dtype=SPAN)
    spans["document"], spans["end"] = np.arange(len(lengths)), lengths
    return spans


def at_tens(_: int, at: int, size: int) -> tuple[int, int]:
    """Paragraphs of ten tokens."""
    begin = -(-at // 10) * 10
    return begin, begin + max(-(-size // 10) * 10, 10)


def covered(spans: Spans) -> set[tuple[int, int]]:
    return {(document, token) for document, begin, end in spans.tolist() for token in range(begin, end)}


CORPORA = {
    "three books": [5000, 5100, 4900],
    "one book": [20_000],
    "rows": [7 + number % 40 for number in range(900)],
    "a book and rows": [30_000, *(10 + number % 9 for number in range(2000))],
    "titles and articles": [3, 900, 2, 700, 4, 1200, 3, 800] * 5,
    "growing": list(np.geomspace(3, 30_000, 40).astype(int)),
}


@pytest.mark.parametrize(("corpus", "share"), list(itertools.product(CORPORA, [0.02, 0.2, 0.5, 0.9])))
def test_a_share_is_of_the_tokens_and_the_sides_are_apart(corpus: str, share: float) -> None:
    """Three books with a weight of 0.2 once gave no token at all."""
    spans = spans_of(CORPORA[corpus])
    taken, rest = take_share(spans, share, "label", at_tens)
    assert num_tokens(taken) == pytest.approx(share * num_tokens(spans), rel=0.12, abs=40)
    assert not covered(taken) & covered(rest)
    assert covered(taken) | covered(rest) == covered(spans)
    again, _ = take_share(spans, share, "label", at_tens)
    assert again.tolist() == taken.tolist()
    assert taken.tolist() == sorted(taken.tolist())


def test_documents_are_cut_only_where_whole_ones_do_not_fit() -> None:
    taken, _ = take_share(spans_of([100] * 50), 0.1, "label", lambda *_: pytest.fail("five of fifty are a tenth"))
    assert taken["end"].tolist() == [100] * 5


def test_what_cannot_be_cut_is_taken_whole_if_there_is_more_than_one() -> None:
    taken, rest = take_share(spans_of([30, 34, 40]), 0.02, "label", lambda *_: None)
    assert len(taken) == 1 and len(rest) == 2
    taken, rest = take_share(spans_of([30]), 0.02, "label", lambda *_: None)
    assert len(taken) == 0 and len(rest) == 1


def test_a_title_is_not_all_that_is_held_out() -> None:
    """Six bytes say nothing about a model; the article that is nearest to the share does."""
    for label in map(str, range(20)):
        taken, _ = take_share(spans_of([3, 2, 4, 600, 700]), 0.02, label, at_tens)
        assert num_tokens(taken) >= 40


@pytest.mark.parametrize("share", [0, 1])
def test_nothing_and_all(share: int) -> None:
    spans = spans_of([5, 6])
    taken, rest = take_share(spans, share, "label", at_tens)
    assert (len(taken), len(rest)) == (2 * share, 2 - 2 * share)
