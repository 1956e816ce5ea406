"""Rows of every known shape become conversations; what is dropped is counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from yangtuo.data.blocks import BlockDataset
from yangtuo.data.conversations import Account, build_blocks, encode_to_fit, read_conversations
from yangtuo.data.template import Message, Role, Template, get_template
from yangtuo.errors import DataError, FileError
from yangtuo.vocab.encoding import load_encoder

Q, A = Message("user", "q\nx"), Message("assistant", "a")


def written(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[list[Message]], Account]:
    account = Account()
    return [conversation for _, conversation in read_conversations(path, account, set())], account


def turns(*pairs: tuple[Role, str]) -> list[Message]:
    return [Message(role, content) for role, content in pairs]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "x", "output": "a", "fact": "ignored"},
        {"instruct": "q", "query": "x", "answer": "a"},
        {"input": "q\nx", "target": "a", "task_type": "ner"},
        {"conversations": [{"from": "human", "value": "q\nx"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"role": "user", "content": "q\nx"}, {"role": "Assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q\nx"}, {"role": "assistant", "content": "a"}]},
        {
            "messages": [
                {"from": "human", "value": "q"},
                {"from": "human", "value": "x"},
                {"from": "bing", "value": "a"},
            ]
        },
    ],
)
def test_every_shape_gives_the_same_conversation(row: dict[str, Any], tmp_path: Path) -> None:
    conversations, account = read(written(tmp_path / "rows.json", [row]))
    assert conversations == [[Q, A]]
    [shapes] = account.shapes.values()
    assert shapes.total() == 1


def test_shapes_mixed_in_one_file_are_all_said(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a"}, {"instruct": "r", "answer": "a"}, {"instruction": "s", "output": "a"}]
    path = written(tmp_path / "rows.json", rows)
    assert read(path)[1].to_dict()["shapes"] == {str(path): {"Alpaca": 2, "instruct": 1}}


def test_other_encodings_are_said(tmp_path: Path) -> None:
    text = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？"
    (tmp_path / "a.csv").write_bytes(f"instruction,output\n{text},{text}\n".encode("gb18030"))
    conversations, account = read(tmp_path / "a.csv")
    assert conversations == [[Message("user", text), Message("assistant", text)]]
    assert list(account.shapes.values()) == [{"Alpaca in GB18030": 1}]


def test_history_comes_first(tmp_path: Path) -> None:
    row = {"instruction": "2", "output": "b", "history": [["1", "a"]], "system": "s"}
    [conversation], _ = read(written(tmp_path / "rows.json", [row]))
    assert conversation == turns(("system", "s"), ("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b"))


@pytest.mark.parametrize("empty", [None, [], ""])
def test_a_history_that_is_empty_is_none(empty: Any, tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "x", "output": "a", "history": empty, "system": None}
    assert read(written(tmp_path / "rows.json", [row]))[0] == [[Q, A]]


def test_sharegpt_with_odd_turns(tmp_path: Path) -> None:
    """Real dumps begin with an answer, end with a question, repeat speakers and carry empty system messages."""
    spoken = [
        ("gpt", "hello"),
        ("system", " "),
        ("human", "q"),
        ("human", "x"),
        ("chatgpt", "a"),
        ("human", "left over"),
    ]
    row = {"conversations": [{"from": speaker, "value": text} for speaker, text in spoken]}
    assert read(written(tmp_path / "rows.json", [row]))[0] == [[Q, A]]


@pytest.mark.parametrize(
    ("spoken", "reason"),
    [
        ([("human", "q"), ("tool", "x"), ("gpt", "a")], "unknown role 'tool'"),
        (
            [("human", "q"), ("gpt", "a"), ("system", "s"), ("human", "r"), ("gpt", "b")],
            "a system message after the first",
        ),
        ([("human", "q")], "no answer"),
        ([("gpt", "a")], "no answer"),
        ([("system", "s")], "no answer"),
        ([], "no answer"),
        ([("human", "q"), ("gpt", "  "), ("human", "r"), ("gpt", "b")], "empty answer"),
        ([("human", ""), ("gpt", "a")], "empty question"),
        ([("human", {"text": "q"}), ("gpt", "a")], "a field is not text"),
        ([("human", "q"), ("gpt", "a \ud83d")], "half a character, as cut emoji leave it"),
    ],
)
def test_unusable_turns_are_dropped_by_reason(spoken: list[tuple[str, Any]], reason: str, tmp_path: Path) -> None:
    row = {"conversations": [{"from": speaker, "value": text} for speaker, text in spoken]}
    conversations, account = read(written(tmp_path / "rows.json", [row]))
    assert conversations == [] and account.dropped == {reason: 1}
    json.dumps(account.to_dict(), ensure_ascii=False).encode()  # what is shown of it can be written


def test_every_dropped_row_is_accounted_for(tmp_path: Path, pico_tokenizer: Path) -> None:
    good = {"instruction": "q", "input": "x", "output": "a"}
    rows = [good, good, {**good, "output": " "}, {**good, "instruction": "", "input": ""}, {**good, "output": ["a"]}]
    rows += [{**good, "instruction": "b", "system": "long " * 60}]
    path = written(tmp_path / "rows.json", rows)
    (tmp_path / "blocks").mkdir()
    encoder = load_encoder(pico_tokenizer)
    # A weight above 1 must not count a row's fate several times.
    account = build_blocks(tmp_path / "blocks", [(path, 3.0)], get_template("alpaca", None), encoder, 112)
    reasons = ("duplicate", "empty answer", "empty question", "a field is not text", "no answer after cutting")
    assert account["dropped"] == dict.fromkeys(reasons, 1)
    assert (account["rows"], account["kept"], account["conversations"]) == (6, 1, 3)
    assert account["examples"]["no answer after cutting"][0].startswith(f'{path}#6: {{"instruction": "b"')


def test_rows_that_the_template_refuses_are_dropped_not_the_run(tmp_path: Path, pico_tokenizer: Path) -> None:
    """One system message among a million rows must not end a run whose model's template knows none."""
    jinja = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
        "{% endif %}{{ m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
    )
    rows = [{"instruction": "q", "output": "a"}, {"instruction": "r", "output": "a", "system": "s"}]
    path, encoder = written(tmp_path / "rows.json", rows), load_encoder(pico_tokenizer)
    account = build_blocks(tmp_path, [(path, 1.0)], Template("model", jinja), encoder, 64)
    assert account["dropped"] == {"the chat template refuses these messages: no system here": 1}
    assert account["kept"] == 1
    broken = Template("model", "{{ messages[0].content + 1 }}")
    with pytest.raises(
        DataError, match=r"no conversation is left[\s\S]*2 the chat template cannot write these messages"
    ):
        build_blocks(tmp_path, [(path, 1.0)], broken, encoder, 64)


def test_the_same_row_in_two_files_is_one(tmp_path: Path, pico_tokenizer: Path) -> None:
    row = {"instruction": "q", "output": "a"}
    paths = [(written(tmp_path / name, [row]), 1.0) for name in ("a.json", "b.json")]
    account = build_blocks(tmp_path, paths, get_template("alpaca", None), load_encoder(pico_tokenizer), 128)
    assert account["dropped"] == {"duplicate": 1} and account["conversations"] == 1


def test_weights_are_exact(tmp_path: Path, pico_tokenizer: Path) -> None:
    """Of 10 usable rows a weight of 2.3 takes all twice and three of them once more, beside half of another file."""
    encoder = load_encoder(pico_tokenizer)
    many = [{"instruction": str(index), "output": f"a{index}a"} for index in range(10)]
    few = [{"instruction": str(index), "output": f"b{index}b"} for index in range(4)] + [
        {"instruction": "", "output": "b"}
    ]
    sources = [(written(tmp_path / "many.json", many), 2.3), (written(tmp_path / "few.json", few), 0.5)]
    build_blocks(tmp_path, sources, get_template("alpaca", None), encoder, 512)
    counts: Counter[str] = Counter()
    for block in BlockDataset(tmp_path):
        learned = encoder.decode(block["input_ids"][block["labels"] != -100].tolist())
        counts.update(re.findall(r"a\da|b\db", learned))
    assert Counter(counts[f"a{index}a"] for index in range(10)) == {2: 7, 3: 3}
    assert Counter(counts[f"b{index}b"] for index in range(4)) == {0: 2, 1: 2}


def test_mistakes_are_named(tmp_path: Path, pico_tokenizer: Path) -> None:
    with pytest.raises(DataError, match=r"foo, bar[\s\S]*Alpaca: instruction, output"):
        read(written(tmp_path / "shape.json", [{"foo": 1, "bar": 2}]))
    (tmp_path / "bad.json").write_text('[{"instruction": "q",\n "output": }]', encoding="utf-8")
    with pytest.raises(FileError, match=r"bad.json is not valid JSON: line 2, column 12"):
        read(tmp_path / "bad.json")
    encoder, template = load_encoder(pico_tokenizer), get_template("alpaca", None)
    for rows, found in [([{"instruction": "q", "output": ""}], "1 rows; 1 empty answer"), ([], "0 rows; none dropped")]:
        with pytest.raises(DataError, match=f"no conversation is left[\\s\\S]*{found}"):
            build_blocks(tmp_path, [(written(tmp_path / "empty.json", rows), 1.0)], template, encoder, 128)


def test_cutting_keeps_the_end_of_the_answer_and_eos(pico_tokenizer: Path) -> None:
    """Answers cut away would leave nothing to learn, and a missing EOS a model that never stops."""
    encoder, template, cut = load_encoder(pico_tokenizer), get_template("alpaca", None), Counter[str]()
    old = turns(("user", "old " * 40), ("assistant", "older"), ("user", "new"), ("assistant", "a"))
    ids, _ = encode_to_fit(template, encoder, old, 120, cut) or ([], [])
    assert ids == template.encode_conversation(encoder, old[2:])[0]
    system = Message("system", "s")
    ids, _ = encode_to_fit(template, encoder, [system, *old], 120, cut) or ([], [])
    assert ids == template.encode_conversation(encoder, [system, *old[2:]])[0], "the system message stays"
    ids, learned = encode_to_fit(template, encoder, [Message("user", "word " * 200), A], 120, cut) or ([], [])
    assert len(ids) <= 120 and ids[-1] == encoder.eos_id
    assert encoder.decode([id_ for id_, flag in zip(ids, learned, strict=True) if flag]) == "a"
    long = Message("assistant", "begin " * 300 + "end")
    ids, learned = encode_to_fit(template, encoder, [Message("user", "q"), long], 120, cut) or ([], [])
    assert 115 <= len(ids) <= 120 and learned[-1] and encoder.decode(ids).endswith("begin end")
    assert cut == {"oldest turns": 2, "question": 1, "answer": 1}
    assert encode_to_fit(template, encoder, [Q, A], 10, cut) is None


def test_cutting_leaves_a_question_and_whole_characters(pico_tokenizer: Path) -> None:
    """An answer to nothing, or one that begins with the last byte of a character, teaches nonsense."""
    encoder, template, cut = load_encoder(pico_tokenizer), get_template("alpaca", None), Counter[str]()
    question, answer = Message("user", "begin " + "驼" * 300 + " end"), Message("assistant", "羊驼" * 300 + "。")
    for max_length in range(205, 211):
        ids, learned = encode_to_fit(template, encoder, [question, answer], max_length, cut) or ([], [])
        assert max_length - 3 < len(ids) <= max_length and ids[-1] == encoder.eos_id
        text = encoder.decode(ids)
        assert "\ufffd" not in text and text.endswith("羊驼。")
        asked = text.partition("Instruction:\n")[2].partition("\n\n### Response")[0]
        assert asked == "begin " + "驼" * 22 + " end"
        assert encoder.decode([id_ for id_, flag in zip(ids, learned, strict=True) if flag]).strip("羊驼") == "。"


def test_a_very_long_question_is_cut_in_reasonable_time(pico_tokenizer: Path) -> None:
    encoder, template, cut = load_encoder(pico_tokenizer), get_template("alpaca", None), Counter[str]()
    conversation = [Message("user", "the cat sat. " * 40_000), A]
    ids, _ = encode_to_fit(template, encoder, conversation, 256, cut) or ([], [])
    assert 250 < len(ids) <= 256 and cut == {"question": 1}


def test_real_alpaca_with_its_dirt(shared_data: Path, tmp_path: Path, pico_tokenizer: Path) -> None:
    account = build_blocks(
        tmp_path,
        [(shared_data / "instruct" / "alpaca_zh_10k.json", 1.0)],
        get_template("alpaca", None),
        load_encoder(pico_tokenizer),
        1024,
    )
    assert account["rows"] == 10021 == account["kept"] + sum(account["dropped"].values())
    assert account["dropped"] == {"empty answer": 6, "duplicate": 1}
    assert account["conversations"] == account["kept"] == 10014
    assert account["blocks"] == len(BlockDataset(tmp_path))
