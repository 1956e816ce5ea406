"""Filters remove what they should, and nothing else."""

from __future__ import annotations

import random

import pytest

from yangtuo.data.clean import Filtered, clean
from yangtuo.data.decontaminate import read_exam
from yangtuo.data.filters import Filters, filter_documents


def test_cleaning_keeps_every_script_and_wide_punctuation() -> None:
    text = "中文，English, ①２ かな 한국어 кириллица العربية हिन्दी"
    assert clean(text, Filtered()) == text


def test_cleaning_mends_scanned_text() -> None:
    removed = Filtered()
    text = "第一回 张天师祈禳瘟疫 洪太尉误走妖魔\r\n大半忘却 了，但自己\u200b也不\n— 12 —\n第 3 页\n尾 e\u0301"
    assert clean(text, removed) == "第一回 张天师祈禳瘟疫 洪太尉误走妖魔\n大半忘却了，但自己也不\n尾 é"
    assert removed.counts["boilerplate lines"] == 2
    assert removed.examples["blanks inside Chinese"]


def test_equal_and_near_documents() -> None:
    """5 % of words changed is a copy; another text is not."""
    generator = random.Random(1)
    words = [f"word{index}" for index in range(3000)]
    documents = [" ".join(generator.choices(words, k=200)) for _ in range(40)]
    changed = documents[0].split()
    for index in range(0, 200, 20):
        changed[index] = "changed"
    texts = [*documents, documents[3], " ".join(changed)]
    exact, removed = filter_documents(texts, Filters(False, "exact", None))
    assert exact == [*documents, " ".join(changed)] and removed.counts == {"equal documents": 1}
    pytest.importorskip("rensa", reason="near-duplicates need rensa, which is not installed here")
    near, removed = filter_documents(texts, Filters(False, "near", None))
    assert near == documents and removed.counts == {"equal documents": 1, "near-duplicates": 1}


def test_planted_questions_are_found() -> None:
    exam = read_exam(["下列关于光合作用的说法中，正确的是哪一项？请选择最合适的答案。", "中国最长的河流是", "短"])
    text = (
        "前文。\n题：下列关于光合作用的 说法中, 正确的是哪一项? 请选择最合适的答案\n"
        "中间\n3. 中国最长的河流是（ ）\n后文短"
    )
    kept, lines = exam.clean(text)
    assert kept == "前文。\n中间\n后文短"
    assert len(lines) == 2 and exam.num_too_short == 1
