"""Windows of text: spread over a stream, covering new tokens, and read in old tokens with both readings aligned."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from yangtuo.growing.windows import Apart, WindowSample, align, covering, readable

NUM_OLD = 10
SOURCES = [[1, 2], [3, 4, 5], []]
"""What ids 10, 11 and 12 stand for."""


def test_windows_are_spread_evenly_over_a_stream_of_any_length() -> None:
    documents = [np.arange(start, start + 7, dtype=np.int32) for start in range(100, 800, 7)]
    sample = WindowSample(bos_id=1, num_windows=8, length=4)
    assert list(sample.passing(documents)) == documents
    stream = [token for document in documents for token in (1, *document.tolist())]
    windows = sample.windows().tolist()
    assert 4 <= len(windows) < 8
    found = [stream.index(window[1]) // 4 for window in windows]
    assert windows == [stream[4 * place : 4 * place + 4] for place in found]
    assert {after - before for before, after in itertools.pairwise(found)} == {32}


def test_a_stream_shorter_than_a_window_gives_none() -> None:
    sample = WindowSample(None, 8, 64)
    assert [len(document) for document in sample.passing([np.arange(5, dtype=np.int32)])] == [5]
    assert sample.windows().shape == (0, 64)


def test_what_is_held_out_is_seen_by_nobody_else_and_nothing_is_lost() -> None:
    apart = Apart(bos_id=7)
    document = np.arange(10_000, 40_000, dtype=np.int32)
    seen = np.concatenate([*apart.passing([document, document[:5]])])
    windows = apart.windows()
    assert len(windows) == 3 and (windows[:, 0] == 7).all() and windows.shape[1] == 256
    assert sorted([*seen.tolist(), *windows[:, 1:].flatten().tolist()]) == sorted(
        [*document.tolist(), *document[:5].tolist()]
    )
    assert not np.isin(windows[:, 1:].numpy(), seen[:-5]).any()


def test_both_readings_of_a_window_meet_at_the_end_of_each_token() -> None:
    windows = torch.tensor([[0, 10, 11, 9], [9, 9, 9, 9]])
    aligned = align(windows, NUM_OLD, SOURCES)
    assert aligned.ids.tolist() == [[0, 1, 2, 3, 4, 5, 9], [9, 9, 9, 9, 0, 0, 0]]
    assert aligned.ends.tolist() == [[0, 2, 5, 6], [0, 1, 2, 3]]
    states = torch.arange(14.0).view(2, 7, 1)
    assert aligned.at_ends(states).flatten().tolist() == [0, 2, 5, 6, 7, 8, 9, 10]


def test_windows_with_tokens_that_stand_for_nothing_are_not_read() -> None:
    windows = torch.tensor([[0, 10], [12, 3], [4, 11]])
    assert readable(windows, NUM_OLD, SOURCES).tolist() == [[0, 10], [4, 11]]


def test_rare_tokens_come_first() -> None:
    common = torch.tensor([[0, 10, 10, 10]]).repeat(12, 1)
    rare = torch.tensor([[0, 10, 11, 3]])
    chosen = covering(torch.cat([common, rare]), NUM_OLD, 3, 3)
    assert len(chosen) == 3 and chosen[0].tolist() == rare[0].tolist()


def test_texts_long_and_short_are_held_out_from_together() -> None:
    long, short = Apart(bos_id=1), Apart(bos_id=1)
    for some, length in ((long, 10_000), (short, 300)):
        list(some.passing([np.zeros(length, dtype=np.int32)]))
    assert torch.cat([long.windows(), short.windows()]).shape == (1, 256)
