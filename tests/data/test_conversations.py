"""Rows of every known shape become conversations; what is dropped is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from yangtuo.data.blocks import BlockDataset
from yangtuo.data.conversations import build_blocks, encode_to_fit, read_conversations
from yangtuo.data.template import Message, get_template
from yangtuo.errors import DataError, FileError
from yangtuo.vocab.encoding import load_encoder

Q, A = Message("user", "q\nx"), Message("assistant", "a")


def written(path: Path, rows: Any) -> list[tuple[Path, float]]:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return [(path, 1.0)]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "x", "output": "a", "fact": "ignored"},
        {"instruct": "q", "query": "x", "answer": "a"},
        {"input": "q\nx", "target": "a", "task_type": "ner"},
        {"conversations": [{"from": "human", "value": "q\nx"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q\nx"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_every_shape_gives_the_same_conversation(row: dict[str, Any], tmp_path: Path) -> None:
    conversations, account = read_conversations(written(tmp_path / "rows.json", [row]))
    assert conversations == [[Q, A]]
    assert len(account.shapes) == 1


def test_history_comes_first(tmp_path: Path) -> None:
    row = {"instruction": "2", "output": "b", "history": [["1", "a"]]}
    [conversation], _ = read_conversations(written(tmp_path / "rows.json", [row]))
    assert [message.content for message in conversation] == ["1", "a", "2", "b"]


def test_every_dropped_row_is_accounted_for(tmp_path: Path) -> None:
    good = {"instruction": "q", "input": "x", "output": "a"}
    rows = [good, good, {**good, "output": " "}, {**good, "instruction": "", "input": ""}, {**good, "output": ["a"]}]
    conversations, account = read_conversations(written(tmp_path / "rows.json", rows))
    assert len(conversations) == account.num_kept == 1
    assert account.dropped == {"duplicate": 1, "empty answer": 1, "empty question": 1, "a field is not text": 1}
    assert account.num_rows == account.num_kept + account.dropped.total()


def test_weights_are_exact(tmp_path: Path) -> None:
    rows = [{"instruction": str(index), "output": "a"} for index in range(10)]
    [(path, _)] = written(tmp_path / "rows.json", rows)
    taken, _ = read_conversations([(path, 2.3)])
    assert Counter(Counter(row[0].content for row in taken).values()) == {2: 7, 3: 3}


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"foo, bar[\s\S]*Alpaca: instruction, output"):
        read_conversations(written(tmp_path / "shape.json", [{"foo": 1, "bar": 2}]))
    (tmp_path / "bad.json").write_text('[{"instruction": "q",\n "output": }]', encoding="utf-8")
    with pytest.raises(FileError, match=r"bad.json is not valid JSON: line 2, column 12"):
        read_conversations([(tmp_path / "bad.json", 1.0)])
    with pytest.raises(DataError, match="no conversation is left"):
        read_conversations(written(tmp_path / "empty.json", [{"instruction": "q", "output": ""}]))


def test_cutting_keeps_the_end_of_the_answer_and_eos(pico_tokenizer: Path) -> None:
    """Answers cut away would leave nothing to learn, and a missing EOS a model that never stops."""
    encoder, template, cut = load_encoder(pico_tokenizer), get_template("alpaca", None), Counter[str]()
    turns = [Message("user", "old " * 40), Message("assistant", "older"), Message("user", "new"), A]
    ids, _ = encode_to_fit(template, encoder, turns, 120, cut) or ([], [])
    assert ids == template.encode_conversation(encoder, turns[2:])[0]
    ids, learned = encode_to_fit(template, encoder, [Message("user", "word " * 200), A], 120, cut) or ([], [])
    assert len(ids) <= 120 and ids[-1] == encoder.eos_id
    assert encoder.decode([id_ for id_, flag in zip(ids, learned, strict=True) if flag]) == "a"
    long = Message("assistant", "begin " * 300 + "end")
    ids, learned = encode_to_fit(template, encoder, [Message("user", "q"), long], 120, cut) or ([], [])
    assert len(ids) == 120 and learned[-1] and encoder.decode(ids).endswith("begin end")
    assert cut == {"oldest turns": 1, "question": 1, "answer": 1}
    assert encode_to_fit(template, encoder, [Q, A], 10, cut) is None


def test_real_alpaca_with_its_dirt(shared_data: Path, tmp_path: Path, pico_tokenizer: Path) -> None:
    account = build_blocks(
        tmp_path,
        [(shared_data / "instruct" / "alpaca_zh_10k.json", 1.0)],
        get_template("alpaca", None),
        load_encoder(pico_tokenizer),
        1024,
    )
    assert account["rows"] == 10021 == account["kept"] + sum(account["dropped"].values())
    assert account["dropped"]["empty answer"] == 6
    assert account["blocks"] == len(BlockDataset(tmp_path))
