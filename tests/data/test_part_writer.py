"""Long texts cut for tokenisation must give the ids that they give whole, or a book trains other tokens than a row."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from yangtuo.data import part_writer
from yangtuo.data.part_writer import LEAD, split_segments
from yangtuo.vocab.encoding import Encoder, load_encoder


def ids_in_segments(text: str, encoder: Encoder, fragment: int) -> tuple[list[int], int]:
    cut = list(split_segments((text[begin : begin + fragment] for begin in range(0, len(text), fragment)), encoder))
    assert "".join(cut) == text
    lead = len(encoder.encode(LEAD))
    later = [encoder.encode(LEAD + segment)[lead:] for segment in cut[1:]]
    return [*encoder.encode(cut[0]), *(one for part in later for one in part)], len(cut)


@pytest.mark.parametrize("tokenizer", ["pico_tokenizer", "pico_byte_level"])
def test_ids_of_segments_are_those_of_the_whole(
    tokenizer: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over texts of blanks, empty lines, digits and two scripts, whatever the fragments they are read in."""
    monkeypatch.setattr(part_writer, "SEGMENT", 60)
    encoder = load_encoder(request.getfixturevalue(tokenizer))
    generator = random.Random(3)
    parts = [
        "The river",
        " ",
        "\n",
        "\n\n",
        "  ",
        "12",
        "你好",
        "。",
        "\n  indented",
        "x\ny",
        "\t",
        "中国\n谢谢",
        "\n-",
    ]
    counts = []
    for _ in range(60):
        text = "".join(generator.choices(parts, k=200))
        ids, count = ids_in_segments(text, encoder, generator.randrange(1, 300))
        counts.append(count)
        assert ids == encoder.encode(text)
    assert min(counts) > 3


@pytest.mark.parametrize("name", ["llama/tokenizer.model", "mistral/tokenizer.model", "llama3", "chinese_sp.model"])
def test_ids_of_a_novel(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real tokenizers, among them a unigram model whose normalisation takes line breaks for blanks."""
    monkeypatch.setattr(part_writer, "SEGMENT", 5000)
    encoder = load_encoder(shared_data / "tokenizers" / name)
    files = sorted((shared_data / "corpora").glob("*/*.txt"))
    for file in files[:3] + files[-2:]:
        text = file.read_text(encoding="utf-8-sig", errors="ignore")[:60_000]
        ids, count = ids_in_segments(text, encoder, 7001)
        assert ids == encoder.encode(text), file.name
        assert count == 1 if name == "chinese_sp.model" else count > 4, file.name


def test_cuts_stand_between_lines_and_never_before_a_blank(
    pico_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_writer, "SEGMENT", 10)
    cut = list(
        split_segments(["one line here\n\n  next line\nthe", " last one of all\nend"], load_encoder(pico_tokenizer))
    )
    assert cut == ["one line here\n", "\n  next line\n", "the last one of all\n", "end"]
    assert all(before.endswith("\n") and after[0] != " " for before, after in pairwise(cut))
