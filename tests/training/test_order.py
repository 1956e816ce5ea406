"""The order of blocks: what a resumed run and a replayed language depend on."""

from __future__ import annotations

from collections import Counter

from yangtuo.training.order import OrderedBlocks, Replayed


def numbers(blocks: object, total: int) -> list[int]:
    ordered = OrderedBlocks(blocks, total, seed=3)
    return [ordered.block_number(index) for index in range(total)]


def test_every_pass_holds_all_conversations_and_new_text() -> None:
    mixed = Replayed(range(30), [{"input_ids": n} for n in range(100, 125)], weight=1 / 3, seed=3)
    assert len(mixed) == 40
    found = numbers(mixed, 120)
    for number in range(3):
        one = found[40 * number : 40 * (number + 1)]
        assert sorted(one)[:30] == list(range(30))
        assert one != sorted(one)
    added = Counter(number for number in found if number >= 30)
    assert set(added) == set(range(30, 55))  # 30 blocks in three passes read all 25 of the replay ...
    assert max(added.values()) == 2  # ... and begin again
    assert mixed[30] == {"input_ids": 100, "is_replayed": True}


def test_the_order_does_not_depend_on_where_a_run_was_resumed() -> None:
    whole = numbers(Replayed(range(7), range(5), weight=0.7, seed=3), 60)
    resumed = OrderedBlocks(Replayed(range(7), range(5), weight=0.7, seed=3), 60, seed=3)
    assert [resumed.block_number(index) for index in range(41, 60)] == whole[41:]
