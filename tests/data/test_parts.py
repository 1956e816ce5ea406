"""The corpus in parts: nothing is lost between them, and a part is known by its content alone."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from yangtuo.data import parts
from yangtuo.data.clean import Filters
from yangtuo.data.part_writer import DOCUMENT
from yangtuo.data.parts import Treatment, make_parts, part_fingerprint, plan_parts
from yangtuo.errors import FileError, OutputError
from yangtuo.vocab.encoding import load_encoder


@pytest.fixture
def treatment(pico_tokenizer: Path) -> Treatment:
    return Treatment(pico_tokenizer, load_encoder(pico_tokenizer).fingerprint, "file", Filters(False, None), False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    rows = [json.dumps({"text": f"{index} " + "谢" * (index % 7)}, ensure_ascii=False) for index in range(200)]
    (directory / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (directory / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (directory / "c.txt").write_text("The river.\n" * 100, encoding="utf-8")
    return directory


def test_ranges_of_a_file_meet_at_line_breaks(corpus: Path) -> None:
    planned = plan_parts([corpus], 500)
    pieces = [piece for part in planned for piece in part.pieces if piece.file.name == "a.jsonl"]
    content = (corpus / "a.jsonl").read_bytes()
    assert len(pieces) > 8 and pieces[0].begin == 0 and pieces[-1].end == len(content)
    assert all(before.end == after.begin for before, after in pairwise(pieces))
    assert all(content[piece.begin - 1 : piece.begin] == b"\n" for piece in pieces[1:])
    whole = [part for part in planned for piece in part.pieces if piece.file.name in ("b.jsonl.gz", "c.txt")]
    assert [piece.end for part in whole for piece in part.pieces] == [None, None]


def test_row_groups_of_a_parquet_file_are_parts(
    tmp_path: Path, treatment: Treatment, pico_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, which is not installed here")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [f"The river {index}" for index in range(100)]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=30)
    planned = plan_parts([tmp_path / "rows.parquet"], 400)
    assert [(part.pieces[0].begin, part.pieces[-1].end) for part in planned] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    made = make_parts(planned, tmp_path / "parts", treatment, load_encoder(pico_tokenizer), lambda _: None)
    assert [len(np.fromfile(part / "documents.bin", DOCUMENT)) for part in made] == [30, 30, 30, 10]
    monkeypatch.setattr(parts, "PART_SIZE", 100)
    assert len(plan_parts([tmp_path / "rows.parquet"])) == 4


def test_a_part_is_known_by_its_content_wherever_it_lies(corpus: Path, tmp_path: Path, treatment: Treatment) -> None:
    """Machines keep the corpus under different paths; one changed byte makes one part anew, and no other."""
    before = [part_fingerprint(part, treatment) for part in plan_parts([corpus], 500)]
    shutil.copytree(corpus, tmp_path / "elsewhere")
    assert [part_fingerprint(part, treatment) for part in plan_parts([tmp_path / "elsewhere"], 500)] == before
    content = (tmp_path / "elsewhere" / "a.jsonl").read_bytes()
    (tmp_path / "elsewhere" / "a.jsonl").write_bytes(content.replace(b'"100 ', b'"900 '))
    after = [part_fingerprint(part, treatment) for part in plan_parts([tmp_path / "elsewhere"], 500)]
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_a_mistake_in_another_process_is_told_with_its_line(
    corpus: Path, tmp_path: Path, treatment: Treatment, pico_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ALONE", 0)
    content = (corpus / "a.jsonl").read_text("utf-8")
    (corpus / "a.jsonl").write_text(content.replace('{"text": "150 ', '{"text: "150 '), encoding="utf-8")
    with pytest.raises(FileError, match="line 151") as caught:
        make_parts(
            plan_parts([corpus], 500), tmp_path / "parts", treatment, load_encoder(pico_tokenizer), lambda _: None
        )
    assert caught.value.expected


def test_a_process_that_was_killed_is_told_and_what_is_finished_stays(
    corpus: Path, tmp_path: Path, treatment: Treatment, pico_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that runs out of memory kills without a word; days of other parts' work are not lost with one."""
    monkeypatch.setattr(parts, "_ALONE", 0)
    planned = plan_parts([corpus], 500)
    encoder = load_encoder(pico_tokenizer)

    def kill(_: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(OutputError, match="ended from outside"):
        make_parts(planned, tmp_path / "parts", treatment, encoder, kill)
    finished = [path.name for path in (tmp_path / "parts").iterdir() if not path.name.startswith(".")]
    assert "000000" in finished
    assert len(make_parts(planned, tmp_path / "parts", treatment, encoder, lambda _: None)) == len(planned)


def test_half_written_parts_are_made_anew(
    corpus: Path, tmp_path: Path, treatment: Treatment, pico_tokenizer: Path
) -> None:
    encoder = load_encoder(pico_tokenizer)
    planned = plan_parts([corpus], 500)
    made = make_parts(planned, tmp_path / "parts", treatment, encoder, lambda _: None)
    tokens = [(part / "tokens.bin").read_bytes() for part in made]
    (tmp_path / "parts" / ".000003.77").mkdir()
    shutil.copytree(made[0], tmp_path / "parts" / "000099")  # of a corpus that was larger
    shutil.rmtree(made[3])
    account = json.loads((made[4] / "account.json").read_text("utf-8"))
    (made[4] / "account.json").write_text(json.dumps({**account, "fingerprint": "of another text"}), encoding="utf-8")
    (made[4] / "tokens.bin").write_bytes(b"")
    again = make_parts(planned, tmp_path / "parts", treatment, encoder, lambda _: None)
    assert [(part / "tokens.bin").read_bytes() for part in again] == tokens
    assert sorted((tmp_path / "parts").iterdir()) == again
