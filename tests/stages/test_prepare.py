"""`yangtuo prepare`: exact shares, exact ids, clear refusals."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yangtuo.config.prepare import PrepareConfig
from yangtuo.data import joining, parts
from yangtuo.data.blocks import BlockDataset, held_out
from yangtuo.data.preview import DryRun
from yangtuo.errors import ConfigError, DataError, FileError, LineageError
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


SENTENCES = (
    "The river is green.",
    "第一章 天下大势，分久必合，合久必分。",
    "Lily sat on the mat.",
    "谢谢，再见。",
    "1, 2 and 3",
)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts, rows and a book in several parts, with repeated documents; parts are of 2,000 bytes."""
    monkeypatch.setattr(parts, "PART_SIZE", 2000)
    directory = tmp_path / "corpus"
    directory.mkdir()
    for index in range(30):
        text = "\n".join(SENTENCES[(index + step) % 5] + f" {index % 25}" for step in range(6))
        (directory / f"{index:02}.txt").write_text(text, encoding="utf-8")
    rows = [{"text": f"Row {index % 90} of the table. {SENTENCES[index % 5]}"} for index in range(100)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory


KILLED = """
import os, signal, sys
from pathlib import Path
from yangtuo.config.prepare import PrepareConfig
from yangtuo.data import joining, part_writer, parts
from yangtuo.stages import prepare

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

where, corpus, tokenizer, output = sys.argv[1:]
parts.PART_SIZE = 2000
if where == "joining":
    joining.join_source = die
else:
    close, closed = part_writer.PartWriter.close, []
    def counted(self, fingerprint):
        closed.append(fingerprint)
        die() if len(closed) == int(where) else close(self, fingerprint)
    part_writer.PartWriter.close = counted
prepare.run(PrepareConfig(source=(corpus,), tokenizer=tokenizer, output=Path(output), block_size=16))
"""


def files_of(path: Path) -> dict[str, bytes]:
    """What must be equal to the byte; the manifest holds paths."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "yangtuo.json"}


def count_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fingerprints of parts that are made from now on."""
    made: list[str] = []
    close = parts.PartWriter.close

    def counted(self: Any, fingerprint: str) -> None:
        made.append(fingerprint)
        close(self, fingerprint)

    monkeypatch.setattr(parts.PartWriter, "close", counted)
    return made


def test_killed_three_times_it_goes_on_and_the_result_is_equal(
    corpus: Path, pico_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL while a part is written, again, and while parts are joined: no finished part is made twice."""
    whole = prepared(corpus, pico_tokenizer, "whole", source=(str(corpus),))
    num_parts = len(parts.plan_parts([corpus]))
    assert num_parts > 6
    for where in ("3", "2", "joining"):
        arguments = [where, str(corpus), str(pico_tokenizer), str(tmp_path / "killed")]
        assert subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode == -9
        assert not (tmp_path / "killed").exists()
        if where == "2":
            assert len(list((tmp_path / ".killed.partial" / "parts").glob("0*"))) == 3
    made = count_made(monkeypatch)
    killed = prepared(corpus, pico_tokenizer, "killed", source=(str(corpus),))
    assert made == []
    assert files_of(killed) == files_of(whole)


def test_anything_changed_is_made_anew(
    corpus: Path, pico_tokenizer: Path, pico_byte_level: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tokenizer, setting or text behind a name that was used before never meets old ids."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    num_parts = len(parts.plan_parts([corpus]))
    made = count_made(monkeypatch)
    changes: list[tuple[Path, dict[str, Any]]] = [
        (pico_tokenizer, {}),
        (pico_byte_level, {}),
        (pico_byte_level, {"clean": False}),
        (pico_byte_level, {"clean": False, "documents": "line"}),
    ]
    for tokenizer, options in changes:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(joining, "join_source", interrupted)
            prepared(corpus, tokenizer, "data", source=(str(corpus),), **options)
        assert len(made) == num_parts and len(set(made)) == num_parts
        made.clear()
    (corpus / "07.txt").write_text("Another text.", encoding="utf-8")
    last = prepared(corpus, *(changes[-1][0], "data"), source=(str(corpus),), **changes[-1][1])
    fresh = prepared(corpus, *(changes[-1][0], "fresh"), source=(str(corpus),), **changes[-1][1])
    assert files_of(last) == files_of(fresh)


def test_the_division_into_parts_and_processes_leaves_no_trace(
    corpus: Path, pico_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of any size, made here or by other processes, give the same files."""
    options: dict[str, Any] = {"source": (f"a={corpus}:1.5", f"b={corpus / 'rows.jsonl'}"), "dedup": "exact"}
    first = prepared(corpus, pico_tokenizer, "first", **options)
    monkeypatch.setattr(parts, "_ALONE", 0)
    assert files_of(prepared(corpus, pico_tokenizer, "processes", **options)) == files_of(first)
    monkeypatch.setattr(parts, "PART_SIZE", 1 << 20)
    assert files_of(prepared(corpus, pico_tokenizer, "large", **options)) == files_of(first)


def test_shards_are_joined_to_the_same_bytes(
    corpus: Path, pico_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"source": (f"zh={corpus}:2",), "held_out": 0.1}
    whole = prepared(corpus, pico_tokenizer, "whole", **options)
    for number in (3, 1, 2):
        shard = prepared(corpus, pico_tokenizer, "data", shard=f"{number}/3", **options)
        assert shard == tmp_path / f"data.shard-{number}-of-3"
    made = count_made(monkeypatch)
    assert files_of(prepared(corpus, pico_tokenizer, "data", **options)) == files_of(whole)
    assert made == [], "joining tokenises nothing"


def test_shards_that_are_missing_or_differ_are_refused(corpus: Path, pico_tokenizer: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"source": (str(corpus),)}
    with pytest.raises(ConfigError, match="I/N"):
        prepared(corpus, pico_tokenizer, "data", shard="3/2", **options)
    prepared(corpus, pico_tokenizer, "data", shard="1/2", **options)
    with pytest.raises(LineageError, match=r"data\.shard-2-of-2[\s\S]*--shard 2/2"):
        prepared(corpus, pico_tokenizer, "data", **options)
    prepared(corpus, pico_tokenizer, "data", shard="2/2", clean=False, **options)
    with pytest.raises(LineageError, match=r"other settings[\s\S]*data\.shard-2-of-2"):
        prepared(corpus, pico_tokenizer, "data", **options)
    prepared(corpus, pico_tokenizer, "data", shard="1/3", **options)
    with pytest.raises(LineageError, match="several divisions"):
        prepared(corpus, pico_tokenizer, "data", **options)
    assert not (tmp_path / "data").exists()


def test_repeated_documents_are_found_across_sources_and_parts(
    corpus: Path, pico_tokenizer: Path, tmp_path: Path
) -> None:
    """The first one stays, in the order of the sources, and what went is shown."""
    more = tmp_path / "more"
    more.mkdir()
    (more / "new.txt").write_text("A text of its own.", encoding="utf-8")
    (more / "old.txt").write_text("\n" + (corpus / "05.txt").read_text("utf-8") + "\n\n", encoding="utf-8")
    path = prepared(corpus, pico_tokenizer, "data", source=(f"a={corpus}", f"b={more}"), held_out=0.0, clean=False)
    sources = json.loads((path / "statistics.json").read_text("utf-8"))["sources"]
    assert sources["a"]["documents"] == 25 + 90 and sources["a"]["removed"] == {"equal documents": 15}
    assert sources["b"]["documents"] == 1 and sources["b"]["removed"] == {"equal documents": 1}
    (example,) = sources["b"]["examples"]["equal documents"]
    assert (corpus / "05.txt").read_text("utf-8").replace("\n", "↵").startswith(example.rstrip("…"))


def test_a_book_is_read_in_fragments_and_is_one_document(
    tmp_path: Path, pico_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file too long for memory gives the ids of the whole."""
    book = tmp_path / "books" / "book.txt"
    book.parent.mkdir()
    text = "".join(f"{sentence} {index}\n" for index in range(200) for sentence in SENTENCES) + "\n\n"
    book.write_text(text, encoding="utf-8")
    encoder = load_encoder(pico_tokenizer)
    monkeypatch.setattr("yangtuo.data.part_writer.SEGMENT", 300)
    monkeypatch.setattr("yangtuo.data.part_writer._BATCH", 1000)
    monkeypatch.setattr(parts, "_STREAMED_ABOVE", 1000)
    monkeypatch.setattr(parts, "_FRAGMENT", 777)
    pytest.importorskip("rensa", reason="near-duplicates need rensa, which is not installed here")
    (book.parent / "copy.txt").write_text("\n" + text.replace("199", "198"), encoding="utf-8")
    path = prepared(book.parent, pico_tokenizer, "data", held_out=0.0, dedup="near", clean=False)
    dataset = BlockDataset(path)
    assert dataset.num_documents == 1, "the copy is a near-duplicate"
    copy = (book.parent / "book.txt").read_text("utf-8")
    ids = [id_ for block in dataset for id_ in block["input_ids"].tolist()][: dataset.num_tokens]
    assert ids in (
        [encoder.bos_id, *encoder.encode(one), encoder.eos_id] for one in (copy, "\n" + text.replace("199", "198"))
    )


def test_exam_questions_are_taken_out(tmp_path: Path, pico_tokenizer: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("前文。\n3. 火警电话是（）\n后文。", encoding="utf-8")
    (texts / "b.txt").write_text("他说火警电话是多少。", encoding="utf-8")
    exam = tmp_path / "exam.csv"
    exam.write_text("Question,A,B,Answer\n火警电话是____。,119,后文,A\n", encoding="utf-8")
    path = prepared(texts, pico_tokenizer, "data", held_out=0.0, decontaminate=(str(exam),))
    source = json.loads((path / "statistics.json").read_text("utf-8"))["sources"]["zh"]
    assert source["removed"] == {"lines of evaluation sets": 1}
    assert source["examples"]["lines of evaluation sets"] == ["3. 火警电话是（）"]
    assert source["characters"] == len("前文。\n后文。") + len("他说火警电话是多少。")


def test_statistics_count_what_is_there(texts: Path, pico_tokenizer: Path) -> None:
    path = prepared(texts, pico_tokenizer, "data")
    source = json.loads((path / "statistics.json").read_text("utf-8"))["sources"]["zh"]
    digits = 10 + 2 * 10
    assert source["scripts"] == {"Latin": 20 * 15, "blanks": 20 * 5, "Han": 40, "digits": digits, "signs": 20}
    assert source["characters"] == sum(source["scripts"].values())
    assert sum(source["lengths"].values()) == 20
    page = (path / "index.html").read_text("utf-8")
    assert "<script" not in page and "http" not in page and "Latin" in page


def test_a_dry_run_shows_blocks_and_writes_nothing(corpus: Path, pico_tokenizer: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    config = PrepareConfig(source=(str(corpus),), tokenizer=str(pico_tokenizer), output=tmp_path / "data", dry_run=True)
    dry_run = prepare.run(config)
    assert isinstance(dry_run, DryRun)
    assert sorted(tmp_path.rglob("*")) == before
    assert dry_run.figures["parts"] == len(parts.plan_parts([corpus]))
    assert dry_run.samples[0].stretches[0].pieces[0].kind == "control", "BOS begins the first document"
    assert "document 2" in "".join(text for text, _ in dry_run.show())


def test_two_sources_of_one_name_are_refused(pico_tokenizer: Path, tmp_path: Path) -> None:
    """Their figures and their held-out documents could not be told apart."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zh.txt").write_text("Once upon a time.", encoding="utf-8")
    sources = (str(tmp_path / "one/zh.txt"), str(tmp_path / "two/zh.txt"))
    with pytest.raises(ConfigError, match="name of its own"):
        prepare.run(PrepareConfig(source=sources, tokenizer=str(pico_tokenizer), output=tmp_path / "out"))


def book(number: int) -> str:
    """A text of 300 paragraphs, none like another."""
    return "\n\n".join(f"Paragraph {index} of book {number}: the river was green {index % 7}." for index in range(300))


def test_shares_are_of_the_text_however_few_its_documents(tmp_path: Path, pico_tokenizer: Path) -> None:
    """Three books: a weight of 0.2 is a fifth of their tokens, and 2 % held out is no whole book."""
    books = tmp_path / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text(book(number), encoding="utf-8")
    path = prepared(books, pico_tokenizer, "data", source=(f"en={books}:0.2", f"more={books}"), dedup="none")
    figures = json.loads((path / "statistics.json").read_text("utf-8"))["sources"]
    assert figures["en"]["held_out_share"] == pytest.approx(0.02, rel=0.2)
    assert figures["en"]["taken_weight"] == pytest.approx(0.2, rel=0.1)
    assert figures["more"]["taken_weight"] == 1
    encoder = load_encoder(pico_tokenizer)
    dataset = BlockDataset(path)
    ids = [id_ for block in dataset for id_ in block["input_ids"].tolist()][: dataset.num_tokens]
    assert ids.count(encoder.bos_id) == ids.count(encoder.eos_id) == dataset.num_documents
    for source in held_out(path):
        for document in source.documents:
            assert document[0] == encoder.bos_id and encoder.eos_id not in document
            text = encoder.decode(document.tolist())
            assert text.startswith("Paragraph") and text.endswith(".\n\n"), "cut between paragraphs"
    apart = [encoder.decode(document.tolist()) for document in held_out(path)[1].documents]
    assert sum(len(text.encode()) for text in apart) == held_out(path)[1].num_bytes
    trained = encoder.decode(ids[-figures["more"]["tokens"] :])
    for line in "".join(apart).split("\n\n"):
        assert not line or line not in trained, "what is held out of a book is not trained on"


def test_one_line_is_cut_at_a_sentence_and_what_cannot_be_cut_is_refused_or_said(
    tmp_path: Path, pico_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "line.txt").write_text(" ".join(book(1).split("\n\n")), encoding="utf-8")
    path = prepared(tmp_path / "line.txt", pico_tokenizer, "data", held_out=0.1)
    (source,) = held_out(path)
    texts = [load_encoder(pico_tokenizer).decode(document.tolist()) for document in source.documents]
    assert texts and all(text.endswith(".") for text in texts)
    (tmp_path / "word.txt").write_text("green " * 500, encoding="utf-8")
    capsys.readouterr()
    prepared(tmp_path / "word.txt", pico_tokenizer, "whole")
    assert "nothing is held out" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match=r"a share of 0\.2"):
        prepared(tmp_path / "word.txt", pico_tokenizer, "none", source=(f"{tmp_path / 'word.txt'}:0.2",))


def test_finished_parts_outlive_a_malformed_row(
    corpus: Path,
    pico_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hours of work are not thrown away for one line: what is finished is kept, said, and used once it is mended."""
    rows = (corpus / "rows.jsonl").read_text("utf-8")
    (corpus / "rows.jsonl").write_text(rows[: rows.rindex("\n", 0, -1)] + '\n{"text": "cut o\n', encoding="utf-8")
    made = count_made(monkeypatch)
    with pytest.raises(FileError, match=r"rows\.jsonl"):
        prepared(corpus, pico_tokenizer, "data", source=(str(corpus),))
    assert "is kept" in capsys.readouterr().err and made
    (corpus / "rows.jsonl").write_text(rows, encoding="utf-8")
    num_finished = len(made)
    path = prepared(corpus, pico_tokenizer, "data", source=(str(corpus),))
    assert len(made) == len(set(made)) and len(made) > num_finished, "no finished part is made twice"
    assert files_of(path) == files_of(prepared(corpus, pico_tokenizer, "fresh", source=(str(corpus),)))


def test_documents_begin_bare_where_the_tokenizer_has_no_bos(pico_byte_level: Path, tmp_path: Path) -> None:
    """Qwen's and GLM-4's tokenizers end documents and begin them with nothing; both once were refused."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_bytes((pico_byte_level / "tokenizer.json").read_bytes())
    settings = {"bos_token": None, "eos_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = tmp_path / "texts"
    texts.mkdir()
    lines = [f"The cat {index} sat on the mat." for index in range(40)]
    (texts / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    path = prepared(texts, tokenizer, "data", documents="line", held_out=0.2)
    encoder, dataset, apart = load_encoder(tokenizer), BlockDataset(path), held_out(path)
    ids = [id_ for block in dataset for id_ in block["input_ids"].tolist()][: dataset.num_tokens]
    assert encoder.bos_id is None and apart
    expected = {tuple(encoder.encode(line)) for line in lines}
    trained = {tuple(map(int, part.split())) for part in " ".join(map(str, ids)).split(f" {encoder.eos_id}")} - {()}
    kept = {tuple(ids[1:].tolist()) for source in apart for ids in source.documents}
    assert trained | kept == expected and not trained & kept
    assert {int(ids[0]) for source in apart for ids in source.documents} == {encoder.eos_id}, (
        "its first token is predicted too"
    )
