"""`yangtuo tokenizer train`: any corpus format, a stated sample, clear refusals, nothing half-written."""

from __future__ import annotations

import dataclasses
import gzip
import json
import unicodedata
from pathlib import Path

import pytest

from yangtuo.config.tokenizer_audit import TokenizerAuditConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.data.readers import sampled_texts
from yangtuo.errors import FileError, OutputError, UserError, VocabularyError
from yangtuo.stages import tokenizer_audit, tokenizer_merge, tokenizer_train
from yangtuo.vocab.encoding import load_encoder
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


KOREAN = "겨울이 가고 봄이 오면 산과 들에 꽃이 핀다. 아이들은 강가에서 돌을 던지며 놀고 있다.\n" * 8
JAPANESE = "このサーバーのデータはコンピューターにあります。サーバーとコンピューターを使います。\n" * 8


def test_decomposed_text_gives_the_pieces_of_composed_text(pico_tokenizer: Path, tmp_path: Path) -> None:
    """Files from a Mac: what is learned from them must be met in text that `prepare` has composed."""
    pieces = []
    for form in ("NFC", "NFD"):
        (tmp_path / f"{form}.txt").write_text(unicodedata.normalize(form, KOREAN), encoding="utf-8")
        pieces.append(train(pico_tokenizer, tmp_path / f"{form}.txt", tmp_path / form, size=30, language="ko"))
    assert pieces[0] == pieces[1] and all(unicodedata.is_normalized("NFC", piece) for piece in pieces[0])


def test_what_was_learned_for_is_kept_with_the_pieces(pico_tokenizer: Path, tmp_path: Path) -> None:
    """`--language ja` once: merging and auditing know the scripts, and words keep their long-vowel marks."""
    (tmp_path / "ja.txt").write_text(JAPANESE, encoding="utf-8")
    (tmp_path / "en.txt").write_text(Path(__file__).read_text("utf-8"), encoding="utf-8")
    train(pico_tokenizer, tmp_path / "ja.txt", tmp_path / "pieces", size=40, language="ja")
    merged = tokenizer_merge.run(
        TokenizerMergeConfig(base=str(pico_tokenizer), pieces=str(tmp_path / "pieces"), output=tmp_path / "merged")
    )
    assert len(load_encoder(merged.path).encode("サーバー", prefix=False)) <= 2
    found = tokenizer_audit.run(
        TokenizerAuditConfig(
            tokenizer=str(merged.path),
            base=str(pico_tokenizer),
            text=(str(tmp_path / "ja.txt"), str(tmp_path / "en.txt")),
        )
    )
    assert isinstance(found, dict) and found["script"] == ["Han", "Hiragana", "Katakana"]
    zeros = ("changed_lines", "dead_pieces", "lost_pieces", "engine_mismatch_lines", "round_trip_failures")
    assert [found[key] for key in zeros] == [0] * 5 and found["compared_lines"] > 50
    assert found["leading_blank_pieces"] == found["leading_space_pieces"] == 0
    (tmp_path / "ko.txt").write_text(KOREAN.replace(".", "。"), encoding="utf-8")
    alone = tokenizer_audit.run(
        TokenizerAuditConfig(tokenizer=str(merged.path), base=str(pico_tokenizer), text=(str(tmp_path / "ko.txt"),))
    )
    assert isinstance(alone, dict) and alone["changed_lines"] is None, "no line could have changed: that is no zero"
    assert "Hangul" in alone["by_script"]


def test_the_ceiling_of_a_pre_tokenizer_is_said(
    pico_byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "हिन्दी में लिखी किताबें पढ़ना अच्छा लगता है। गाँव के बच्चे नदी के किनारे खेलते हैं।\n" * 8
    (tmp_path / "hi.txt").write_text(text, encoding="utf-8")
    values = {}
    for widen in (False, True):
        config = TokenizerTrainConfig(
            base=str(pico_byte_level),
            corpus=(str(tmp_path / "hi.txt"),),
            size=40,
            language="hi",
            widen=widen,
            output=tmp_path / f"pieces-{widen}",
        )
        artifact = tokenizer_train.run(config)
        assert not isinstance(artifact, dict) and artifact.manifest
        values[widen] = artifact.manifest.details
        assert values[widen]["chars_per_token"] <= values[widen]["ceiling"]
    assert "--widen" in capsys.readouterr().err
    assert values[True]["ceiling"] > 1.5 * values[False]["ceiling"]
    merged = tokenizer_merge.run(
        TokenizerMergeConfig(
            base=str(pico_byte_level), pieces=str(tmp_path / "pieces-True"), output=tmp_path / "merged"
        )
    )
    wide = json.loads((merged.path / "tokenizer.json").read_text("utf-8"))["pre_tokenizer"]
    assert "0900" in json.dumps(wide) or "x{9" in json.dumps(wide)
