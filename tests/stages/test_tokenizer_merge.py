"""`yangtuo tokenizer merge`: a directory that every tool reads alike, of either family, in either style."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.errors import LineageError, VocabularyError
from yangtuo.stages import tokenizer_merge, tokenizer_train
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.learn import sentencepiece_pieces

TEXT = "小河流过小镇，小镇的人爱小河。\n小镇的人说：小河流过小镇。\n" * 6


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file of Chinese sentences."""
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
def test_trained_pieces_join_their_base(
    family: str, corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(family)
    pieces, output = tmp_path / "pieces", tmp_path / "tokenizer"
    tokenizer_train.run(TokenizerTrainConfig(base=str(base), corpus=(str(corpus),), size=18, output=pieces))
    config = TokenizerMergeConfig(base=str(base), pieces=str(pieces), output=output, add_token=("[PAD]", "<|user|>"))
    manifest = tokenizer_merge.run(config).manifest
    old, new = load_encoder(base), load_encoder(output)
    assert manifest and manifest.tokenizer == new.fingerprint
    assert manifest.vocabulary_size == new.vocabulary_size == old.vocabulary_size + 18 + 2
    assert new.pieces[: old.vocabulary_size] == old.pieces
    assert (new.bos_id, new.eos_id) == (old.bos_id, old.eos_id)
    assert new.control_id("<|user|>") == new.vocabulary_size - 1
    fast = AutoTokenizer.from_pretrained(output)
    assert fast.pad_token_id == new.vocabulary_size - 2 and len(fast) == new.vocabulary_size
    lines = [*TEXT.splitlines()[:2], "[PAD] <|user|> 小镇 12  x", "  def f(x):\n\treturn x"]
    plain = AutoTokenizer.from_pretrained(output, split_special_tokens=True)
    assert plain(lines, add_special_tokens=False).input_ids == new.encode_batch(lines)
    assert not {new.vocabulary_size - 1, new.vocabulary_size - 2} & {
        one for ids in new.encode_batch(lines) for one in ids
    }
    assert [new.decode(ids) for ids in new.encode_batch(lines)] == lines


def test_published_style_gives_the_published_files(shared_data: Path, tmp_path: Path) -> None:
    """Adapters that others trained on Chinese-LLaMA and Chinese-Alpaca need exactly these tokenizers."""
    tokenizers = shared_data / "tokenizers"
    base, pieces = str(tokenizers / "llama"), str(tokenizers / "chinese_sp.model")
    plain = TokenizerMergeConfig(base=base, pieces=pieces, style="published", output=tmp_path / "plain")
    tokenizer_merge.run(plain)
    digest = hashlib.sha256((tmp_path / "plain/tokenizer.model").read_bytes()).hexdigest()
    assert digest == "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"
    alpaca = TokenizerMergeConfig(
        base=base, pieces=pieces, style="published", add_token=("[PAD]",), output=tmp_path / "alpaca"
    )
    tokenizer_merge.run(alpaca)
    encoder = load_encoder(tmp_path / "alpaca")
    assert encoder.vocabulary_size == 49_954 and encoder.control_id("[PAD]") == 49_953
    assert AutoTokenizer.from_pretrained(tmp_path / "alpaca").pad_token_id == 49_953
    assert 49_953 not in encoder.encode("[PAD]")


def test_what_was_left_out_is_listed(shared_data: Path, tmp_path: Path) -> None:
    tokenizers = shared_data / "tokenizers"
    config = TokenizerMergeConfig(
        base=str(tokenizers / "llama"), pieces=str(tokenizers / "chinese_sp.model"), output=tmp_path / "out"
    )
    details = tokenizer_merge.run(config).result()
    assert {"10", "2016"} <= set(details["out_of_script"])
    assert details["vocabulary_size"] == 32_000 + details["added"]
    assert json.loads((tmp_path / "out/yangtuo.json").read_text(encoding="utf-8"))["details"]["closed"]


def test_pieces_of_the_other_family_are_refused(pico_tokenizer: Path, pico_byte_level: Path, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="byte-level"):
        tokenizer_merge.run(
            TokenizerMergeConfig(base=str(pico_byte_level), pieces=str(pico_tokenizer), output=tmp_path / "a")
        )
    with pytest.raises(VocabularyError, match="SentencePiece"):
        tokenizer_merge.run(
            TokenizerMergeConfig(base=str(pico_tokenizer), pieces=str(pico_byte_level), output=tmp_path / "b")
        )
    with pytest.raises(VocabularyError, match="published"):
        tokenizer_merge.run(
            TokenizerMergeConfig(
                base=str(pico_byte_level), pieces=str(pico_byte_level), style="published", output=tmp_path / "c"
            )
        )
    with pytest.raises(VocabularyError, match="no new piece in Thai"):
        tokenizer_merge.run(
            TokenizerMergeConfig(
                base=str(pico_tokenizer), pieces=str(pico_tokenizer), script=("Thai",), output=tmp_path / "d"
            )
        )
    assert not list(tmp_path.iterdir())


def test_pieces_that_are_special_tokens_are_refused(pico_tokenizer: Path, tmp_path: Path) -> None:
    """They would give the base's </s> a second way to be met, from text."""
    (tmp_path / "pieces.model").write_bytes(sentencepiece_pieces(["小镇", "</s>", "<0x41>"]))
    config = TokenizerMergeConfig(
        base=str(pico_tokenizer), pieces=str(tmp_path / "pieces.model"), output=tmp_path / "out"
    )
    with pytest.raises(VocabularyError, match=r"special tokens(.|\n)*</s>, <0x41>"):
        tokenizer_merge.run(config)
    with pytest.raises(VocabularyError, match=r"exist already(.|\n)*<s>"):
        tokenizer_merge.run(dataclasses.replace(config, pieces=str(pico_tokenizer), add_token=("<s>",)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["pieces.model"]


def test_an_adapter_is_no_tokenizer(tmp_path: Path, pico_tokenizer: Path) -> None:
    (tmp_path / "adapter").mkdir()
    manifest = {"kind": "adapter", "stage": "pretrain", "step": "", "config": {}, "parents": {}, "files": {}}
    (tmp_path / "adapter/yangtuo.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(LineageError, match="adapter"):
        tokenizer_merge.run(
            TokenizerMergeConfig(base=str(pico_tokenizer), pieces=str(tmp_path / "adapter"), output=tmp_path / "out")
        )
