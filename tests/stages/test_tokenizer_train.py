"""`yangtuo tokenizer train`: any corpus format, a stated sample, clear refusals, nothing half-written."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.data.readers import sampled_texts
from yangtuo.errors import FileError, OutputError, UserError, VocabularyError
from yangtuo.stages import tokenizer_train
from yangtuo.vocab.merge import ordered_pieces
from yangtuo.vocab.sentencepiece_model import read_model

TEXT = "小河流过小镇，小镇的人爱小河。\n小镇的人说：小河流过小镇。\n" * 6


def train(base: Path, corpus: Path, output: Path, size: int = 15, **options: object) -> list[str]:
    """Runs the stage, returns the pieces of a SentencePiece base."""
    config = TokenizerTrainConfig(base=str(base), corpus=(str(corpus),), size=size, output=output, **options)  # type: ignore[arg-type]
    artifact = tokenizer_train.run(config)
    assert artifact.manifest and artifact.manifest.details["pieces"] == size
    return ordered_pieces(read_model(output / "tokenizer.model"))


def test_pieces_do_not_depend_on_the_corpus_format(pico_tokenizer: Path, tmp_path: Path) -> None:
    for name in ("txt", "jsonl", "gz"):
        (tmp_path / name).mkdir()
    (tmp_path / "txt/a.txt").write_text(TEXT, encoding="utf-8")
    rows = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (tmp_path / "jsonl/a.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "gz/a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    pieces = [train(pico_tokenizer, tmp_path / name, tmp_path / f"{name}-out") for name in ("txt", "jsonl", "gz")]
    assert pieces[0] == pieces[1] == pieces[2] and "小镇" in pieces[0]


def test_byte_level_pieces_are_merges(pico_byte_level: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    config = TokenizerTrainConfig(
        base=str(pico_byte_level), corpus=(str(tmp_path / "a.txt"),), size=20, output=tmp_path / "out"
    )
    tokenizer_train.run(config)
    lines = (tmp_path / "out/merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#version") and len(lines) == 21 and all(line.count(" ") == 1 for line in lines[1:])


def test_a_corpus_above_the_budget_is_sampled_from_every_part(pico_tokenizer: Path, tmp_path: Path) -> None:
    """Of many small files every so many-th is read, not the first few."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(40):
        word = "甲乙" if number < 20 else "丙丁"
        (corpus / f"{number:02d}.txt").write_text(f"{word}。" * 50, encoding="utf-8")
    size = sum(file.stat().st_size for file in corpus.iterdir())
    pieces = train(pico_tokenizer, corpus, tmp_path / "out", size=7, sample_bytes=size // 4)
    assert {"甲乙", "丙丁"} <= set(pieces)
    texts = list(sampled_texts([corpus], size // 4))
    assert sum(len(text.encode()) for text in texts) <= size // 4 and len(texts) == 10


def test_a_large_file_gives_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("小镇\n" * 1_000_000, encoding="utf-8")
    texts = list(sampled_texts([tmp_path / "a.txt"], 2_000_000))
    assert len(texts) == 1 and 1_999_000 < len(texts[0].encode()) <= 2_000_000 and texts[0].endswith("小镇")


def test_dry_run_measures_and_writes_nothing(pico_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    config = TokenizerTrainConfig(
        base=str(pico_tokenizer), corpus=(str(tmp_path),), size=15, output=tmp_path / "out", dry_run=True
    )
    result = tokenizer_train.run(config)
    assert isinstance(result, dict)
    assert result["chars_per_token"] > 1.25 * result["base_chars_per_token"] and result["pays"]
    short = tokenizer_train.run(dataclasses.replace(config, training_tokens=100))
    assert isinstance(short, dict) and not short["pays"] and "100 tokens are 6.7" in short["advice"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "size", "error", "message"),
    [
        ("only English, 123", 5, VocabularyError, "no text in Han"),
        (TEXT, 5000, VocabularyError, "does not hold 5,000"),
    ],
)
def test_what_the_corpus_cannot_give_is_refused(
    pico_tokenizer: Path, tmp_path: Path, content: str, size: int, error: type[UserError], message: str
) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        train(pico_tokenizer, tmp_path / "a.txt", tmp_path / "out", size)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_bases_that_cannot_be_extended_are_refused(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n##s\n", encoding="utf-8")
    with pytest.raises(VocabularyError, match="unigram"):
        train(shared_data / "tokenizers/chinese_sp.model", tmp_path / "a.txt", tmp_path / "out")
    with pytest.raises(FileError, match=r"vocab\.txt is not a SentencePiece model(.|\n)*WordPiece"):
        train(tmp_path / "vocab.txt", tmp_path / "a.txt", tmp_path / "out")
    model = (shared_data / "tokenizers/llama/tokenizer.model").read_bytes()
    for size in (0, 1000, len(model) // 2, 499_437, len(model) - 40):  # within pieces, behind them, within settings
        (tmp_path / "cut.model").write_bytes(model[:size])
        with pytest.raises(FileError, match=rf"cut\.model is not(.|\n)*{size:,} bytes"):
            train(tmp_path / "cut.model", tmp_path / "a.txt", tmp_path / "out")
    with pytest.raises(OutputError):
        train(shared_data / "tokenizers/llama", tmp_path / "a.txt", tmp_path / "a.txt")
