"""`yangtuo prepare`: exact shares, exact ids, clear refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from yangtuo.config import PrepareConfig
from yangtuo.data.blocks import BlockDataset, held_out
from yangtuo.errors import DataError, FileError
from yangtuo.stages import prepare
from yangtuo.vocab.encoding import load_encoder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    directory = tmp_path / "texts"
    directory.mkdir()
    for index in range(20):
        (directory / f"{index:02}.txt").write_text(f"The river {index} is green. 中国", encoding="utf-8")
    return directory


def prepared(texts: Path, tokenizer: Path, output: str, **options: object) -> Path:
    source = options.pop("source", (f"zh={texts}",))
    config = PrepareConfig(
        source=source,  # type: ignore[arg-type]
        tokenizer=str(tokenizer),
        output=texts.parent / output,
        block_size=16,
        **options,  # type: ignore[arg-type]
    )
    return prepare.run(config).path


def test_documents_are_whole_between_bos_and_eos(texts: Path, pico_tokenizer: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    path = prepared(texts, pico_tokenizer, "data", held_out=0.0)
    dataset = BlockDataset(path)
    ids = [id_ for block in dataset for id_ in block["input_ids"].tolist()][: dataset.num_tokens]
    expected = []
    for file in sorted(texts.iterdir()):
        expected += [encoder.bos_id, *encoder.encode(file.read_text("utf-8")), encoder.eos_id]
    assert ids == expected


def test_held_out_share_and_weights_are_exact_and_repeatable(texts: Path, pico_tokenizer: Path) -> None:
    sources = (f"a={texts}", f"b={texts}:2.5")
    first = prepared(texts, pico_tokenizer, "one", source=sources, held_out=0.1, dedup="none")
    second = prepared(texts, pico_tokenizer, "two", source=sources, held_out=0.1, dedup="none")
    assert (first / "tokens.bin").read_bytes() == (second / "tokens.bin").read_bytes()
    assert {source.name: len(source.documents) for source in held_out(first)} == {"a": 2, "b": 2}
    assert BlockDataset(first).num_documents == 18 + 45
    other = prepared(texts, pico_tokenizer, "three", source=sources, held_out=0.1, dedup="none", seed=1)
    assert (first / "held-out.bin").read_bytes() != (other / "held-out.bin").read_bytes()


def test_manifest_tells_tokenizer_and_counts(texts: Path, pico_tokenizer: Path) -> None:
    path = prepared(texts, pico_tokenizer, "data")
    manifest = json.loads((path / "yangtuo.json").read_text("utf-8"))
    assert manifest["tokenizer"] == load_encoder(pico_tokenizer).fingerprint
    source = manifest["details"]["sources"]["zh"]
    assert source["documents"] == 20 and source["held_out"] == 1
    assert source["bytes"] == sum(len(file.read_bytes()) for file in texts.iterdir())


def test_encodings_and_formats(tmp_path: Path, pico_tokenizer: Path) -> None:
    """The same text in any clothes gives the same tokens."""
    text = "道可道，非常道。名可名，非常名。无名天地之始，有名万物之母。"
    directory = tmp_path / "mixed"
    directory.mkdir()
    (directory / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (directory / "b.txt").write_bytes(text.encode("gb18030"))
    (directory / "c.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    (directory / "d.txt.gz").write_bytes(gzip.compress(text.encode()))
    (directory / "e.csv").write_text(f'id,text\n1,"{text}"\n', encoding="utf-8")
    path = prepared(directory, pico_tokenizer, "data", held_out=0.0, dedup="none")
    assert BlockDataset(path).num_documents == 5
    path = prepared(directory, pico_tokenizer, "once", held_out=0.0)
    assert BlockDataset(path).num_documents == 1


def test_mistakes_are_refused_and_leave_nothing(tmp_path: Path, pico_tokenizer: Path) -> None:
    directory = tmp_path / "texts"
    directory.mkdir()
    with pytest.raises(DataError, match="an empty directory"):
        prepared(directory, pico_tokenizer, "data")
    (directory / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        prepared(directory, pico_tokenizer, "data")
    (directory / "a.txt").write_bytes(b"abc \xff\xfe\x81 def")
    with pytest.raises(FileError, match=r"a.txt is not UTF-8 text[\s\S]*line 1"):
        prepared(directory, pico_tokenizer, "data")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["texts"]
