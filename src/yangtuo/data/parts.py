"""The corpus in parts: a part is read, filtered and tokenised on its own, by any process of any machine.

A part is a run of files, or a range of one that can be divided (.jsonl by lines, .parquet by row groups); any other
file is read as a stream, in one part, however large. Finished, it is a directory, written under another name first:

    tokens.bin      the ids of its documents, BOS and EOS included
    documents.bin   a `DOCUMENT` for each
    sketches.bin    a `dedup.SKETCH` for each, where near-duplicates are looked for
    account.json    its fingerprint, what filters removed, encodings, scripts

The fingerprint covers the bytes that were read and all that decides what became of them: a part is used again
when it is the same, and made again when it is not. This module does not know what becomes of parts.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import yangtuo
from yangtuo.config.options import shard_path
from yangtuo.data.clean import Filters
from yangtuo.data.part_writer import PartWriter
from yangtuo.data.readers import Division, read_documents, record_text
from yangtuo.data.records import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    compose,
    detect_encoding,
    is_compressed,
    list_files,
    open_parquet,
    open_text,
    read_records,
    suffix,
)
from yangtuo.errors import LineageError, OutputError
from yangtuo.files import read_json
from yangtuo.vocab.encoding import Encoder, load_encoder

PART_SIZE = 8 << 20
"""Bytes of a part, as far as files can be divided; more where there would be over 16,384 parts."""

_MOST_PARTS = 1 << 14
_STREAMED_ABOVE = 4 << 20  # bytes of a text file from which on its one document is read in fragments
_FRAGMENT = 1 << 19  # characters
_ALONE = 4 << 20  # bytes of a corpus that are read before other processes have started
_CHUNK = 1 << 20
_LISTED = 8


@dataclass(frozen=True)
class Piece:
    """A file, or the range [begin, end) of one as `read_records` takes it."""

    file: Path
    num_bytes: int
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Part:
    """A run of documents of one source."""

    number: int
    source: int
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(piece.num_bytes for piece in self.pieces)


@dataclass(frozen=True)
class Treatment:
    """What is done with every part; travels to other processes."""

    tokenizer: Path
    tokenizer_fingerprint: str
    division: Division
    filters: Filters
    sketched: bool
    """Whether near-duplicates will be looked for."""

    @property
    def fingerprint(self) -> str:
        """Identity of all that decides what becomes of a text."""
        exam = self.filters.exam.fingerprint if self.filters.exam else None
        settings = [self.tokenizer_fingerprint, self.division, self.filters.clean, exam, self.sketched]
        return hashlib.sha256(json.dumps([yangtuo.__version__, *settings]).encode()).hexdigest()


def plan_parts(sources: Sequence[Path], size: int | None = None) -> list[Part]:
    """Divides the files of all sources, in their order, into parts of about `size` bytes.

    The same files give the same parts on every machine, wherever they lie.
    """
    files = [list_files(source, (*TEXT_SUFFIXES, *RECORD_SUFFIXES)) for source in sources]
    size = size or max(PART_SIZE, sum(file.stat().st_size for paths in files for file in paths) // _MOST_PARTS)
    parts: list[Part] = []
    for source, paths in enumerate(files):
        run: list[Piece] = []
        for piece in (piece for file in paths for piece in _divide(file, size)):
            if run and sum(earlier.num_bytes for earlier in run) + piece.num_bytes > size:
                parts.append(Part(len(parts), source, tuple(run)))
                run = []
            run.append(piece)
        parts.append(Part(len(parts), source, tuple(run)))
    return parts


def _divide(file: Path, size: int) -> Iterator[Piece]:
    num_bytes = file.stat().st_size
    if num_bytes <= size or is_compressed(file):
        yield Piece(file, num_bytes)
    elif suffix(file) == ".parquet":
        metadata = open_parquet(file).metadata
        for group in range(metadata.num_row_groups):
            yield Piece(file, metadata.row_group(group).total_byte_size, group, group + 1)
    elif suffix(file) == ".jsonl" and detect_encoding(file) != "utf-16":
        begin = 0
        with file.open("rb") as stream:
            while begin < num_bytes:
                stream.seek(begin + size - 1)
                stream.readline()
                end = stream.tell() if begin + size < num_bytes else num_bytes
                yield Piece(file, end - begin, begin, end)
                begin = end
    else:
        yield Piece(file, num_bytes)


def part_fingerprint(part: Part, treatment: Treatment) -> str:
    """SHA-256 over the content of the part and its treatment, hexadecimal; the place of its files does not count."""
    pieces = [[piece.file.name, piece.begin, piece.end, _hash_piece(piece)] for piece in part.pieces]
    return hashlib.sha256(json.dumps([treatment.fingerprint, pieces]).encode()).hexdigest()


def _hash_piece(piece: Piece) -> str:
    status = piece.file.stat()
    if piece.end is not None and suffix(piece.file) == ".jsonl":
        return _hash_range(piece.file, piece.begin, piece.end)
    if piece.end is not None:
        return _hash_whole(piece.file, status.st_size, status.st_mtime_ns)
    return _hash_range(piece.file, 0, status.st_size)


@lru_cache(maxsize=16)
def _hash_whole(file: Path, size: int, _modified: int) -> str:
    """Of a file whose row groups are parts, once for all of them."""
    return _hash_range(file, 0, size)


def _hash_range(file: Path, begin: int, end: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(begin)
        while begin < end and (data := stream.read(min(_CHUNK, end - begin))):
            digest.update(data)
            begin += len(data)
    return digest.hexdigest()


def _read(part: Part, division: Division) -> Iterator[tuple[Iterable[str], str]]:
    """The text of each document in fragments, to be taken before the next, and its encoding."""
    for piece in part.pieces:
        if piece.end is not None:
            for record in read_records(piece.file, piece.begin, piece.end):
                yield (compose(record_text(record)),), record.encoding
        elif division == "file" and suffix(piece.file) == ".txt" and piece.num_bytes > _STREAMED_ABOVE:
            with open_text(piece.file) as (stream, encoding):
                # A line longer than a fragment is cut where the fragment ends.
                read = iter(lambda: compose(stream.read(_FRAGMENT) + stream.readline(_FRAGMENT)), "")
                yield read, encoding
        else:
            for document in read_documents(piece.file, division):
                yield (document.text,), document.encoding


def make_part(
    part: Part,
    directory: Path,
    treatment: Treatment,
    encoder: Encoder,
    num_threads: int | None = 1,
    most: int | None = None,
) -> Path:
    """Makes the directory of a part below `directory`, unless it stands there; returns it.

    `most` ends a part after the document that reaches so many characters: a sample, not to be kept.
    """
    final = directory / f"{part.number:06}"
    fingerprint = part_fingerprint(part, treatment)
    if final.is_dir():
        if read_account(final)["fingerprint"] == fingerprint:
            return final
        shutil.rmtree(final)
    work = directory / f".{part.number:06}.{os.getpid()}"
    work.mkdir(parents=True)
    with PartWriter(work, encoder, treatment.filters, treatment.sketched, num_threads) as writer:
        for fragments, encoding in _read(part, treatment.division):
            writer.add(fragments, encoding)
            if most is not None and writer.num_characters >= most:
                break
        writer.close(fingerprint)
    work.rename(final)
    return final


def read_account(directory: Path) -> dict[str, Any]:
    """What a finished part says of itself."""
    return read_json(directory / "account.json")


def make_parts(
    parts: Sequence[Part], directory: Path, treatment: Treatment, encoder: Encoder, advance: Callable[[int], None]
) -> list[Path]:
    """Makes all parts on all cores, one process a core; `advance` is told the bytes of each as it is done.

    Processes that are left over by a killed parent end by themselves.
    """
    directory.mkdir(exist_ok=True)
    wanted = {f"{part.number:06}" for part in parts}
    for leftover in [entry for entry in directory.iterdir() if entry.name not in wanted]:
        shutil.rmtree(leftover)
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_workers = min(num_cores, len(parts))
    if num_workers < 2 or sum(part.num_bytes for part in parts) < _ALONE:
        made = []
        for part in parts:
            made.append(make_part(part, directory, treatment, encoder, num_cores))
            advance(part.num_bytes)
        return made
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads' locks of a library at work
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_workers, context, _begin, (directory, treatment)) as pool:
        try:
            tasks = [pool.submit(_make, part) for part in parts]
            made = []
            for part, task in zip(parts, tasks, strict=True):
                made.append(task.result())
                advance(part.num_bytes)
        except BrokenProcessPool as error:
            raise OutputError(
                "a process that prepared a part of the text was ended from outside",
                found="killed, as systems do where memory runs out",
                expected=f"memory for {num_workers} processes, one a core",
                run="the same command, which goes on with the parts that are finished (taskset -c 0 for one process)",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise
    return made


_work: tuple[Path, Treatment, Encoder]


def _begin(directory: Path, treatment: Treatment) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and ends its children
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    _work = directory, treatment, load_encoder(treatment.tokenizer)


def _make(part: Part) -> Path:
    directory, treatment, encoder = _work
    return make_part(part, directory, treatment, encoder)


def find_shards(output: Path, parts: Sequence[Part], treatment: Treatment) -> list[Path] | None:
    """The directories of all parts in the shards beside `output`, or None where there are no shards.

    Raises `LineageError` where a shard is missing, or made of other text, with another tokenizer or other settings.
    """
    counts = {
        int(match[1])
        for path in output.parent.glob(f"{output.name}.shard-*-of-*")
        if (match := re.fullmatch(r".*\.shard-\d+-of-(\d+)", path.name))
    }
    if not counts:
        return None
    if len(counts) > 1:
        raise LineageError(
            f"beside {output} stand shards of several divisions of the work",
            found=", ".join(f"{count} shards" for count in sorted(counts)),
            expected="those of one; remove the others",
        )
    count = counts.pop()
    missing = [number for number in range(1, count + 1) if not shard_path(output, number, count).is_dir()]
    if missing:
        raise LineageError(
            f"shards of {output} are missing",
            found=f"{count - len(missing)} of {count}",
            expected=", ".join(shard_path(output, number, count).name for number in missing[:_LISTED]),
            run=f"the same command with --shard {missing[0]}/{count}, or remove all shards",
        )
    directories = [shard_path(output, index % count + 1, count) / "parts" / f"{part.number:06}" for index, part in
             enumerate(parts)]  # fmt: skip
    with ThreadPoolExecutor() as pool:
        expected = list(pool.map(lambda part: part_fingerprint(part, treatment), parts))
    differing = [
        (path, part)
        for path, part, fingerprint in zip(directories, parts, expected, strict=True)
        if not path.is_dir() or read_account(path)["fingerprint"] != fingerprint
    ]
    if differing:
        names = sorted({path.parent.parent.name for path, _ in differing})
        raise LineageError(
            f"shards of {output} were made of other text, with another tokenizer or other settings",
            found=f"{len(differing)} of {len(parts)} parts differ, in {', '.join(names[:_LISTED])}; "
            f"the first holds {differing[0][1].pieces[0].file}",
            expected="the same files, tokenizer and options on every machine",
            run="the same command with --shard again for these, after removing them",
        )
    return directories
