"""Filters remove what they should, and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from yangtuo.data.clean import Filtered, clean
from yangtuo.data.decontaminate import read_exam, read_passages
from yangtuo.data.dedup import NUM_BANDS, find_near, signatures, sketches


def test_cleaning_keeps_every_script_and_wide_punctuation() -> None:
    text = "中文，English, ①２ かな 한국어 кириллица العربية हिन्दी"
    assert clean(text, Filtered()) == text


def test_cleaning_mends_scanned_text() -> None:
    removed = Filtered()
    text = "第一回 张天师祈禳瘟疫 洪太尉误走妖魔\r\n大半忘却 了，但自己\u200b也不\n— 12 —\n第 3 页\n尾 e\u0301"
    assert clean(text, removed) == "第一回 张天师祈禳瘟疫 洪太尉误走妖魔\n大半忘却了，但自己也不\n尾 é"
    assert removed.counts["boilerplate lines"] == 2
    assert removed.examples["blanks inside Chinese"]


def test_a_copy_with_changed_words_is_found_and_the_first_stays() -> None:
    """5 % of words changed is a copy; another text is not."""
    pytest.importorskip("rensa", reason="near-duplicates need rensa, which is not installed here")
    generator = random.Random(1)
    words = [f"word{index}" for index in range(3000)]
    documents = [" ".join(generator.choices(words, k=200)) for _ in range(40)]
    changed = documents[0].split()
    for index in range(0, 200, 20):
        changed[index] = "changed"
    kept = sketches(signatures([*documents, " ".join(changed)]))
    bands = [np.ascontiguousarray(kept["keys"][:, band]) for band in range(NUM_BANDS)]
    found = find_near(bands, kept["marks"], np.ones(41, dtype=bool))
    assert np.flatnonzero(found).tolist() == [40]
    assert not find_near(bands, kept["marks"], np.arange(41) != 40).any(), "what is removed already is not found again"


def test_planted_questions_are_found() -> None:
    questions = ["下列关于光合作用的说法中，正确的是哪一项？请选择最合适的答案。", "中国最长的河流是", "短"]
    exam = read_exam([(question, True) for question in questions])
    text = (
        "前文。\n题：下列关于光合作用的 说法中, 正确的是哪一项? 请选择最合适的答案\n"
        "中间\n3. 中国最长的河流是（ ）\n后文短"
    )
    kept, lines = exam.clean(text)
    assert kept == "前文。\n中间\n后文短"
    assert len(lines) == 2 and exam.num_too_short == 1


@pytest.mark.parametrize(
    "planted",
    [
        "火警电话是",
        "12. 火警电话是（　）",
        "第3题：火警电话是____。",
        "（2）火警电话是（B）",
        "  火警电话是：",
        "【单选】火警电话是？",
    ],
)
def test_a_short_question_goes_where_it_stands_by_itself(planted: str) -> None:
    """15 bytes; as a line of its own, numbered or not, with the blank to be filled or an answer in it."""
    exam = read_exam([("火警电话是____。", True)])
    assert exam.clean(f"甲说，\n{planted}\n乙。")[0] == "甲说，\n乙。"
    assert exam.clean(f"天冷了。{planted.strip()}\n乙。")[0] == "天冷了。乙。", "as a sentence, it goes alone"


def test_innocent_text_stays_though_a_short_question_or_an_option_is_in_it() -> None:
    exam = read_exam([("火警电话是", True), ("总则", False), ("肾在液为", True), ("119", False), ("x=2", True)])
    text = (
        "他说火警电话是多少，我忘了。\n总则\n119\n肾在液为唾，是中医的说法。\n我家的火警电话是坏的。\n2\n设x=2，则y=3。"
    )
    assert exam.clean(text) == (text, [])
    assert exam.num_too_short == 3


def test_an_option_of_six_characters_goes_as_a_line_and_stays_as_a_word() -> None:
    exam = read_exam([("对数正态分布", False), ("世界无烟日是几月几日", True)])
    assert exam.clean("返回对数正态分布的值。\nB. 对数正态分布\n完") == (
        "返回对数正态分布的值。\n完",
        ["B. 对数正态分布"],
    )
    assert exam.clean("前文世界无烟日是几月几日后文\n完")[0] == "完"


def test_options_of_rows_are_no_questions(tmp_path: Path) -> None:
    """A heading that happens to equal an option of two characters must not vanish from a law."""
    rows = [{"id": "1", "Question": "咽的分部", "A": "总则体系", "B": "附则说明"}, {"stem_zh": "肾在液为", "o": "唾液"}]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "more.txt").write_text("世界无烟日是\n", encoding="utf-8")
    exam = read_exam(read_passages(tmp_path))
    kept = "总则体系\n附则说明\n唾液\n结束"
    assert exam.clean("咽的分部\n总则体系\n1. 肾在液为：\n附则说明\n世界无烟日是\n唾液\n结束")[0] == kept


def test_all_questions_of_real_exams_are_found(shared_data: Path) -> None:
    """Also those of six to fifteen bytes, numbered and between lines of a law; one letter alone is no question."""
    passages = [passage for name in ("ceval", "cmmlu") for passage in read_passages(shared_data / "eval" / name)]
    exam = read_exam(passages)
    questions = {text for text, is_question in passages if is_question}
    assert len(questions) > 1800
    left = {one: exam.clean(f"前文\n12. {one}\n完毕")[0] for one in questions}
    assert {one: text for one, text in left.items() if text != "前文\n完毕"} == {}


@pytest.mark.parametrize(
    "text",
    [
        "ខ្ញុំ\u200bចូលចិត្ត\u200bសៀវភៅ។",
        "ฉันชอบ\u200bหนังสือ",
        "ຂ້ອຍ\u200bມັກ",
        "ကျွန်တော်\u200bကြိုက်တယ်",
        "می\u200cخواهم کتاب بخوانم",
        "क्\u200dष और र\u200dक",
        "שלום \u200e123\u200f עולם",
        "مرحبا \u200eABC\u200f",
    ],
)
def test_cleaning_keeps_what_a_script_needs(text: str) -> None:
    """Without them words run together, letters join otherwise, and numbers stand in another order."""
    removed = Filtered()
    assert clean(text, removed) == text and not removed.counts


def test_cleaning_takes_the_same_characters_out_of_other_text() -> None:
    assert clean("但自\u200b己 the\u200b end\u200e of\u200f it\n\u200bab", Filtered()) == "但自己 the end of it\nab"
