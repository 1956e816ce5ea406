"""Shared beginnings: every input is computed once, and fewer tokens than one by one."""

from __future__ import annotations

import random

from yangtuo.evaluation.exam_model import _Input, share_beginnings


def computed(groups: list[tuple[int, list[_Input]]]) -> int:
    return sum(shared + sum(len(item.ids) - shared for item in group) for shared, group in groups)


def test_examples_of_a_subject_are_read_once_and_unrelated_inputs_stay_together() -> None:
    generator = random.Random(0)
    draw = lambda count: tuple(generator.randrange(1000) for _ in range(count))  # noqa: E731
    subjects = [draw(500), draw(400)]
    inputs = []
    for subject in subjects:
        for _ in range(10):
            ids = (*subject, *draw(generator.randrange(20, 60)))
            inputs.append(_Input(ids, len(ids) - 1))
    inputs += [_Input(ids, len(ids) - 1) for ids in (draw(30), draw(50))]
    generator.shuffle(inputs)
    groups = list(share_beginnings(inputs))
    assert sorted(shared for shared, _ in groups) == [0, 400, 500]
    assert sorted(item.ids for _, group in groups for item in group) == sorted(item.ids for item in inputs)
    for shared, group in groups:
        assert len({item.ids[:shared] for item in group}) == 1
    assert computed(groups) < sum(len(item.ids) for item in inputs) / 5


def test_a_position_that_is_needed_is_never_shared() -> None:
    ids = tuple(range(100))
    groups = list(share_beginnings([_Input(ids, 90), _Input((*ids, 7), 100), _Input((*ids, 8), 100)]))
    assert all(shared <= item.first for shared, group in groups for item in group)
