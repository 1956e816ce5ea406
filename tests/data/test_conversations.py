"""Rows of every known shape become conversations; what is dropped is counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from yangtuo.data.blocks import BlockDataset
from yangtuo.data.conversations import Account, Building, build_blocks, fit, read_conversations
from yangtuo.data.shapes import Conversation, read_columns
from yangtuo.data.template import Message, Role, Template, get_template
from yangtuo.errors import ConfigError, DataError, FileError
from yangtuo.vocab.encoding import load_encoder

Q, A = Message("user", "q\nx"), Message("assistant", "a")


def written(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[list[Message]], Account]:
    account = Account()
    return [conversation.messages for _, conversation in read_conversations(path, account, set())], account


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
        ([("human", "q"), ("wizard", "x"), ("gpt", "a")], "unknown role 'wizard'"),
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
    account = build_blocks(
        tmp_path / "blocks", [(path, 3.0)], get_template("alpaca", None), encoder, Building(max_length=112)
    )
    reasons = ("duplicate", "empty answer", "empty question", "a field is not text", "no room for the answer")
    assert account["dropped"] == dict.fromkeys(reasons, 1)
    assert (account["rows"], account["kept"], account["conversations"]) == (6, 1, 3)
    assert account["examples"]["no room for the answer"][0].startswith(f'{path}#6: {{"instruction": "b"')


def test_rows_that_the_template_refuses_are_dropped_not_the_run(tmp_path: Path, pico_tokenizer: Path) -> None:
    """One system message among a million rows must not end a run whose model's template knows none."""
    jinja = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
        "{% endif %}{{ m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
    )
    rows = [{"instruction": "q", "output": "a"}, {"instruction": "r", "output": "a", "system": "s"}]
    path, encoder = written(tmp_path / "rows.json", rows), load_encoder(pico_tokenizer)
    account = build_blocks(tmp_path, [(path, 1.0)], Template("model", jinja), encoder, Building(max_length=64))
    assert account["dropped"] == {"the chat template refuses these messages: no system here": 1}
    assert account["kept"] == 1
    broken = Template("model", "{{ messages[0].content + 1 }}")
    with pytest.raises(
        DataError, match=r"no conversation is left[\s\S]*2 the chat template cannot write these messages"
    ):
        build_blocks(tmp_path, [(path, 1.0)], broken, encoder, Building(max_length=64))


def test_the_same_row_in_two_files_is_one(tmp_path: Path, pico_tokenizer: Path) -> None:
    row = {"instruction": "q", "output": "a"}
    paths = [(written(tmp_path / name, [row]), 1.0) for name in ("a.json", "b.json")]
    account = build_blocks(
        tmp_path, paths, get_template("alpaca", None), load_encoder(pico_tokenizer), Building(max_length=128)
    )
    assert account["dropped"] == {"duplicate": 1} and account["conversations"] == 1


def test_weights_are_exact(tmp_path: Path, pico_tokenizer: Path) -> None:
    """Of 10 usable rows a weight of 2.3 takes all twice and three of them once more, beside half of another file."""
    encoder = load_encoder(pico_tokenizer)
    many = [{"instruction": str(index), "output": f"a{index}a"} for index in range(10)]
    few = [{"instruction": str(index), "output": f"b{index}b"} for index in range(4)] + [
        {"instruction": "", "output": "b"}
    ]
    sources = [(written(tmp_path / "many.json", many), 2.3), (written(tmp_path / "few.json", few), 0.5)]
    build_blocks(tmp_path, sources, get_template("alpaca", None), encoder, Building(max_length=512))
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
            build_blocks(
                tmp_path, [(written(tmp_path / "empty.json", rows), 1.0)], template, encoder, Building(max_length=128)
            )


@pytest.mark.parametrize("max_length", [120, 150, 200])
def test_long_answers_keep_their_beginning(pico_tokenizer: Path, max_length: int) -> None:
    """An answer cut at its beginning teaches to begin in the middle, EOS behind a cut to stop in the middle."""
    encoder, template = load_encoder(pico_tokenizer), get_template("alpaca", None)
    whole = template.encode_conversation(encoder, [Message("user", "q"), Message("assistant", "begin " * 300 + "end")])
    ids, learned = fit(whole, max_length, "cut") or ([], [])
    assert ids == whole[0][:max_length] and learned == whole[1][:max_length]
    answer = encoder.decode([token for token, counts in zip(ids, learned, strict=True) if counts])
    assert answer.startswith("begin begin") and encoder.eos_id not in ids
    assert fit(whole, max_length, "drop") is None
    assert fit(whole, len(whole[0]), "drop") == whole
    question = template.encode_conversation(encoder, [Message("user", "word " * 200), A])
    assert fit(question, max_length, "cut") is None, "no room for the answer"


def test_real_alpaca_with_its_dirt(shared_data: Path, tmp_path: Path, pico_tokenizer: Path) -> None:
    account = build_blocks(
        tmp_path,
        [(shared_data / "instruct" / "alpaca_zh_10k.json", 1.0)],
        get_template("alpaca", None),
        load_encoder(pico_tokenizer),
        Building(max_length=1024, held_out=0.0),
    )
    assert account["rows"] == 10021 == account["kept"] + sum(account["dropped"].values())
    assert account["dropped"] == {"empty answer": 6, "duplicate": 1, "no room for the answer": 2}
    assert account["conversations"] == account["kept"] == 10012
    assert account["blocks"] == len(BlockDataset(tmp_path))


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks."}}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q\nx", "completion": " a"},
        {"prompt": [{"role": "user", "content": "q\nx"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": "q\nx", "response": "a"},
        {"question": "q\nx", "answer": "a"},
        {"query": "q\nx", "response": "a", "history": []},
        {"instruction": "q", "context": "x", "response": "a", "category": "closed_qa"},
        {"instruction": "q", "context": float("nan"), "response": "a", "input": "x"},
        {"conversation": [{"from": "human", "value": "q\nx"}, {"from": "gpt", "value": "a"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q\nx"}]},
                {"role": "model", "content": "a"},
            ]
        },
    ],
)
def test_shapes_of_other_tools_give_the_same_conversation(row: dict[str, Any], tmp_path: Path) -> None:
    assert read(written(tmp_path / "rows.json", [row]))[0] == [[Q, A]]


@pytest.mark.parametrize("key", ["messages", "conversations", "instruction"])
def test_a_system_prompt_beside_the_turns_counts(key: str, tmp_path: Path) -> None:
    spoken = [{"role": "user", "content": "q\nx"}, {"role": "assistant", "content": "a"}]
    row = {"instruction": "q", "input": "x", "output": "a"} if key == "instruction" else {key: spoken}
    row = {**row, "system": "Parrot.", "tools": ""}
    assert read(written(tmp_path / "rows.json", [row]))[0] == [[Message("system", "Parrot."), Q, A]]


def test_nan_and_null_are_no_text(tmp_path: Path) -> None:
    lines = [
        '{"instruction": "q", "input": NaN, "output": "a"}',
        '{"instruction": "r", "input": null, "output": NaN}',
        '{"instruction": NaN, "output": "a"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    conversations, account = read(tmp_path / "rows.jsonl")
    assert conversations == [[Message("user", "q"), A]]
    assert account.dropped == {"empty answer": 1, "empty question": 1}


def test_the_indentation_of_code_stays(tmp_path: Path, pico_tokenizer: Path) -> None:
    row = {"instruction": "Go on:", "input": "\n    if x:\n        y()\n", "output": "    else:\n        z()\n\n"}
    [messages], _ = read(written(tmp_path / "rows.json", [row]))
    assert [message.content for message in messages] == [
        "Go on:\n    if x:\n        y()",
        "    else:\n        z()",
    ]
    encoder = load_encoder(pico_tokenizer)
    for name in ("alpaca", "alpaca-2"):
        ids, _ = get_template(name, None).encode_conversation(encoder, messages)
        assert "    else:\n        z()" in encoder.decode(ids)


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}],
                },
                {"role": "tool", "content": "blue"},
                {"role": "assistant", "content": "a"},
            ],
            "tools": [TOOL],
        },
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
                {"from": "observation", "value": "blue"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "look", "description": "Looks."}]',
        },
    ],
)
def test_tools_are_given_to_the_template(row: dict[str, Any], tmp_path: Path, pico_tokenizer: Path) -> None:
    """OpenAI's messages and LLaMA-Factory's turns are the same; a template without tools drops the row, and says so."""
    path, account = written(tmp_path / "rows.json", [row]), Account()
    [(_, conversation)] = read_conversations(path, account, set())
    assert conversation == Conversation(
        [
            Message("user", "q"),
            Message("assistant", "", {"tool_calls": [CALL]}),
            Message("tool", "blue"),
            A,
        ],
        [TOOL],
    )
    encoder = load_encoder(pico_tokenizer)
    jinja = (
        "{{ bos_token }}{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{% for m in messages %}"
        "{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ids, learned = Template("model", jinja).encode_conversation(encoder, conversation.messages, conversation.tools)
    text = encoder.decode(ids)
    assert "look;user: q" in text and '{"name": "look", "arguments": {"at": "sky"}}' in text and "tool: blue" in text
    counted = encoder.decode([token for token, counts in zip(ids, learned, strict=True) if counts])
    assert '"at": "sky"' in counted and "blue" not in counted
    directory = tmp_path / "blocks"
    directory.mkdir()
    other = written(tmp_path / "other.json", [{"instruction": "q", "output": "a"}])
    made = build_blocks(
        directory, [(path, 1.0), (other, 1.0)], get_template("alpaca", None), encoder, Building(max_length=200)
    )
    [reason] = made["dropped"]
    assert "which the template alpaca does not write" in reason and made["kept"] == 1


def test_messages_of_no_weight_are_read_and_not_learned(tmp_path: Path, pico_tokenizer: Path) -> None:
    spoken = [("user", "q"), ("assistant", "wrong"), ("user", "r"), ("assistant", "right")]
    row = {"messages": [{"role": role, "content": text, "weight": int(text != "wrong")} for role, text in spoken]}
    [messages], _ = read(written(tmp_path / "rows.json", [row]))
    encoder = load_encoder(pico_tokenizer)
    ids, learned = get_template("alpaca", None).encode_conversation(encoder, messages)
    counted = encoder.decode([token for token, counts in zip(ids, learned, strict=True) if counts])
    assert "right" in counted and "wrong" not in counted and "wrong" in encoder.decode(ids)
    row["messages"][-1]["weight"] = 0
    assert read(written(tmp_path / "none.json", [row]))[1].dropped == {"no answer that counts": 1}


def test_any_other_columns_are_named(tmp_path: Path) -> None:
    shape = read_columns("question=frage,answer=antwort,system=rolle")
    path = written(tmp_path / "rows.json", [{"frage": "q\nx", "antwort": "a", "rolle": "s"}])
    account = Account()
    [(_, conversation)] = read_conversations(path, account, set(), shape)
    assert conversation.messages == [Message("system", "s"), Q, A]
    for wrong in ("question=a", "answer=b", "question=a,answer=b,colour=c", "question=,answer=b", "a"):
        with pytest.raises(ConfigError, match="--columns"):
            read_columns(wrong)


def test_conversations_are_held_out(tmp_path: Path, pico_tokenizer: Path) -> None:
    encoder, template = load_encoder(pico_tokenizer), get_template("alpaca", None)
    rows = [{"instruction": f"say {number}", "output": f"a{number}a"} for number in range(50)]
    sources = [(written(tmp_path / "rows.json", rows), 2.0)]
    account = build_blocks(tmp_path, sources, template, encoder, Building(max_length=128, held_out=0.1))
    assert account["held_out"] == 5 and account["conversations"] == 90
    texts = []
    for directory in (tmp_path, tmp_path / "held-out"):
        dataset = BlockDataset(directory)
        blocks = (dataset[index] for index in range(len(dataset)))
        texts.append("".join(encoder.decode(block["input_ids"][block["labels"] != -100].tolist()) for block in blocks))
    learned, apart = (set(re.findall(r"a\d+a", text)) for text in texts)
    assert len(learned) == 45 and len(apart) == 5 and not learned & apart
    again = tmp_path / "again"
    again.mkdir()
    assert build_blocks(again, sources, template, encoder, Building(max_length=128))["held_out"] == 0, "too few"
