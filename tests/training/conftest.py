"""What the tests of training share: a small dataset, and a model grown by a few pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from yangtuo.config.expand import ExpandConfig
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.stages import expand, prepare, tokenizer_merge
from yangtuo.vocab.learn import sentencepiece_pieces


@pytest.fixture(scope="session")
def values(pico_model: Path, pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    directory = tmp_path_factory.mktemp("distributed")
    for number in range(8):
        lines = [f"The dog number {number * 10 + line} slept by door {line * 7 % 13}." for line in range(10)]
        (directory / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    data = prepare.run(
        PrepareConfig(
            source=(f"en={directory}",),
            tokenizer=str(pico_tokenizer),
            output=directory / "data",
            block_size=32,
            held_out=0.2,
        )
    )
    return {
        "model": str(pico_model),
        "data": str(data.path),
        "rank": 4,
        "alpha": 8,
        "learning_rate": 3e-3,
        "epochs": 0.5,
        "batch_size": 4,
        "save_every": 4,
        "dtype": "float32",
    }


@pytest.fixture(scope="session")
def grown(values: dict, pico_model: Path, pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same run on a model grown by a few pieces: new rows alone learn, at rates by their size."""
    directory = tmp_path_factory.mktemp("grown")
    (directory / "text").mkdir()
    for number in range(8):
        lines = [f"小镇 door {line} 河 {number * line % 7} 小狗 slept." for line in range(10)]
        (directory / f"text/{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    (directory / "pieces.model").write_bytes(sentencepiece_pieces(["小", "镇", "小镇", "河", "狗"]))
    pieces = str(directory / "pieces.model")
    tokenizer = tokenizer_merge.run(
        TokenizerMergeConfig(base=str(pico_tokenizer), pieces=pieces, output=directory / "tokenizer")
    )
    model = expand.run(ExpandConfig(model=str(pico_model), tokenizer=str(tokenizer.path), output=directory / "model"))
    data = prepare.run(
        PrepareConfig(
            source=(f"zh={directory / 'text'}",),
            tokenizer=str(model.path),
            output=directory / "data",
            block_size=32,
            held_out=0.2,
        )
    )
    return {**values, "model": str(model.path), "data": str(data.path)}
