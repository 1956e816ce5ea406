"""The dataset on disk gives back what was written, and keeps documents apart."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from yangtuo.data.blocks import BlockDataset, HeldOutWriter, held_out, write_blocks, write_packed
from yangtuo.errors import FileError


def test_long_document_continues_in_the_next_block(tmp_path: Path) -> None:
    """Position ids restart at each document and at each block; the first token of a document is nobody's label."""
    documents = [[1, 5, 2], [1, 6, 7, 8, 9, 2]]
    write_blocks(tmp_path, documents, block_size=4, vocabulary_size=100, padding_id=2)
    dataset = BlockDataset(tmp_path)
    assert len(dataset) == 3
    rows = [dataset[index] for index in range(3)]
    assert [row["input_ids"].tolist() for row in rows] == [[1, 5, 2, 1], [6, 7, 8, 9], [2, 2, 2, 2]]
    assert [row["position_ids"].tolist() for row in rows] == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert [row["labels"].tolist() for row in rows] == [[-100, 5, 2, -100], [-100, 7, 8, 9], [-100] * 4]
    assert (dataset.num_tokens, dataset.num_documents) == (9, 2)


def test_large_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    """Ids above 65,535 would silently wrap in 16 bits: a Llama 3 would train on other tokens."""
    write_blocks(tmp_path, [[128_000, 70_000]], block_size=2, vocabulary_size=128_256, padding_id=0)
    assert BlockDataset(tmp_path)[0]["input_ids"].tolist() == [128_000, 70_000]


def test_packed_conversations_stay_whole_and_masked(tmp_path: Path) -> None:
    """No conversation is cut by packing; what is not an answer, and padding, has no label."""
    documents = [([1, 2, 3], [False, True, True]), ([4, 5, 6, 7], [False, False, True, True]), ([8], [False])]
    write_packed(tmp_path, documents, block_size=4, vocabulary_size=100, padding_id=0)
    dataset = BlockDataset(tmp_path)
    assert [dataset[index]["input_ids"].tolist() for index in range(2)] == [[4, 5, 6, 7], [1, 2, 3, 8]]
    assert [dataset[index]["labels"].tolist() for index in range(2)] == [[-100, -100, 6, 7], [-100, 2, 3, -100]]
    assert dataset[1]["position_ids"].tolist() == [0, 1, 2, 0]


def test_workers_of_a_data_loader_open_the_files(tmp_path: Path) -> None:
    """A pickled dataset must not carry its content, or every worker copies the corpus."""
    write_blocks(tmp_path, [[1, 2] * 50_000], block_size=100, vocabulary_size=10, padding_id=0)
    pickled = pickle.dumps(BlockDataset(tmp_path))
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled)[7]["input_ids"], BlockDataset(tmp_path)[7]["input_ids"])


def test_held_out_documents_come_back(tmp_path: Path) -> None:
    writer = HeldOutWriter(tmp_path, 100)
    for name, ids, num_bytes in (("zh", [1, 9], 6), ("zh", [1, 8, 7], 9), ("en", [1], 1)):
        writer.add(name, ids, num_bytes)
    writer.close()
    found = {source.name: source for source in held_out(tmp_path)}
    assert [document.tolist() for document in found["zh"].documents] == [[1, 9], [1, 8, 7]]
    assert (found["zh"].num_bytes, found["en"].num_bytes) == (15, 1)


def test_other_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not a dataset of token blocks"):
        BlockDataset(tmp_path)


def test_a_damaged_dataset_is_refused_before_a_model_meets_it(tmp_path: Path) -> None:
    """An id beyond the vocabulary ends a run on a GPU in an assertion that names nothing."""
    write_blocks(tmp_path, [[1, 9, 8, 2]], block_size=8, vocabulary_size=100, padding_id=2)
    dataset = BlockDataset(tmp_path)
    dataset.require_ids(10)
    with pytest.raises(FileError, match=r"tokens\.bin is damaged"):
        dataset.require_ids(9)
    apart = HeldOutWriter(tmp_path, 100)
    apart.add("zh", [1, 9], 6)
    apart.close()
    assert held_out(tmp_path, 10)
    with pytest.raises(FileError, match=r"held-out\.bin is damaged"):
        held_out(tmp_path, 9)
    (tmp_path / "starts.bin").write_bytes(b"\0" * 9)
    with pytest.raises(FileError, match=r"starts\.bin is damaged"):
        BlockDataset(tmp_path)
