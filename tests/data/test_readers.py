"""Documents of every kind of text file, of rows, and of data sets on a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import types
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from yangtuo import hub
from yangtuo.data import records
from yangtuo.data.decontaminate import read_passages
from yangtuo.data.readers import Division, read_documents
from yangtuo.data.records import to_nfc
from yangtuo.errors import DataError, FileError

BOOK = (
    "　　第一回\r\n甄士隐梦幻识通灵\r\n \t　\r\n\n"
    "　　此开卷第一回也。\n作者自云：因曾历过一番梦幻之后，故将真事隐去。\n"
)


def texts(path: Path, division: Division = "file") -> list[str]:
    return [document.text for document in read_documents(path, division)]


def test_divisions_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(BOOK, encoding="utf-8", newline="")
    assert texts(tmp_path) == [BOOK.replace("\r\n", "\n")]
    assert texts(tmp_path, "paragraph") == [
        "第一回\n甄士隐梦幻识通灵",
        "此开卷第一回也。\n作者自云：因曾历过一番梦幻之后，故将真事隐去。",
    ]
    assert texts(tmp_path, "line") == [
        "　　第一回",
        "甄士隐梦幻识通灵",
        "　　此开卷第一回也。",
        "作者自云：因曾历过一番梦幻之后，故将真事隐去。",
    ]


@pytest.mark.parametrize("division", ["file", "paragraph", "line"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "big5hkscs"])
def test_text_files_in_every_encoding(encoding: str, division: Division, tmp_path: Path) -> None:
    """Old Chinese books lie about in four encodings; read wrongly they are noise, and nothing says so."""
    text = "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？\n人不知而不慍，不亦君子乎？"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    documents = list(read_documents(tmp_path, division))
    assert [document.text for document in documents] == (text.split("\n") if division == "line" else [text])
    assert {document.encoding for document in documents} == {encoding.removesuffix("-sig")}
    assert {document.place for document in documents} == {str(tmp_path / "a.txt")}


def test_paragraphs_come_before_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_CHUNK", 1000)
    file = tmp_path / "a.txt"
    file.write_bytes("".join(f"{index} 中文{'字' * 500}\n\n" for index in range(200)).encode() + b"\xff")
    stream = read_documents(file, "paragraph")
    assert [next(stream).text.split()[0] for _ in range(100)] == [str(index) for index in range(100)]
    with pytest.raises(FileError, match=r"byte 0xff at offset \d+, line 401\b"):
        list(stream)


def test_markdown_is_read_without_what_no_reader_sees(tmp_path: Path) -> None:
    text = "---\ntitle: x\n---\n# 国防教育法\n\n<!-- INFO\nEND -->\n第一条 ---\n"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    assert texts(tmp_path, "line") == ["# 国防教育法", "第一条 ---"]
    (tmp_path / "a.md").rename(tmp_path / "a.txt")
    assert texts(tmp_path) == [text]


def test_a_hole_in_a_file_is_refused_and_not_read_to_its_end(tmp_path: Path) -> None:
    """A terabyte of zeros takes no room on a disk and all of the memory."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.write("从前有一个小女孩。\n".encode() * 100_000)
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="zero bytes"):
        list(read_documents(tmp_path / "a.txt"))


def test_nfc_of_a_text_is_that_of_its_lines() -> None:
    text = "한국어\n" + unicodedata.normalize("NFD", "한국어 é\n\n") + "e\n\u0301\n" + "ångström" * 3
    assert to_nfc(text) == unicodedata.normalize("NFC", text) != text


def test_rows_give_their_text_or_their_turns(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "a"},
        {"text": None},
        {"content": "b"},
        {"text": " "},
        {"instruction": "q", "input": "x", "output": "a"},
        {"instruction": "q", "output": ["a"]},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [(one.text, one.place) for one in read_documents(file)] == [
        ("a", f"{file}:1"),
        ("b", f"{file}:3"),
        ("q\nx\na", f"{file}:5"),
    ]
    file.write_text('{"title": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a.jsonl:1 has no text\n.*the keys title\n.*Alpaca: instruction, output"):
        list(read_documents(file))


def test_rows_say_their_encoding(tmp_path: Path) -> None:
    text = "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？"
    (tmp_path / "a.csv").write_bytes(f"text\n{text}\n".encode("big5hkscs"))
    assert [(one.text, one.encoding) for one in read_documents(tmp_path)] == [(text, "big5hkscs")]


def test_passages_of_an_exam_are_its_lines_and_fields(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("question,A,B\nq,x,y\n", encoding="utf-8")
    assert [text for text, _ in read_passages(tmp_path)] == ["one", "two", "q", "x", "y"]


FILES = {
    "README.md": b"# A card\n",
    "data/train.jsonl": b'{"text": "train"}\n',
    "data/test.jsonl": b'{"text": "test"}\n',
    "picture.png": b"\x89PNG",
    "notes.txt": b"notes",
}


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[str]]]:
    """A hub with the data set owner/name, and the files that were fetched from it."""
    fetched: list[str] = []
    commit = "0" * 40

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, name = b"", self.path.partition(f"/resolve/{commit}/")[2]
            if "/tree/" in self.path:
                tree = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in FILES.items()]
                body = json.dumps(tree).encode()
            elif self.path.startswith("/api/datasets/owner/name"):
                siblings = [{"rfilename": file} for file in FILES]
                body = json.dumps({"id": "owner/name", "sha": commit, "siblings": siblings}).encode()
            elif name in FILES:
                body = FILES[name]
                fetched.extend([name] if self.command == "GET" else [])
            self.send_response(200 if body else 404)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{name or "none"}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()


READ = """
import sys
from pathlib import Path
from yangtuo import hub
from yangtuo.data.readers import read_documents
for document in read_documents(hub.locate(sys.argv[1], is_data=True)):
    print(document.text)
"""


@pytest.mark.parametrize(
    ("reference", "read", "files"),
    [
        ("owner/name", ["test", "train", "notes"], {"README.md", "data/train.jsonl", "data/test.jsonl", "notes.txt"}),
        ("owner/name/data", ["test", "train"], {"data/train.jsonl", "data/test.jsonl"}),
        ("owner/name/data/train.jsonl", ["train"], {"data/train.jsonl"}),
    ],
)
def test_a_data_set_of_hugging_face_is_read_through_its_own_client(
    reference: str, read: list[str], files: set[str], endpoint: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, fetched = endpoint
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", READ, reference]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout.split() == read, result.stderr
    assert set(fetched) == files, "pictures are not fetched"


def test_a_data_set_of_modelscope_goes_to_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def dataset_snapshot_download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    client = types.ModuleType("modelscope")
    client.dataset_snapshot_download = dataset_snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", client)
    assert hub.locate("modelscope:owner/name/data", is_data=True) == tmp_path / "data"
    assert hub.locate("modelscope:owner/name", is_data=True) == tmp_path
    assert asked[0] == ("owner/name", ["data", "data/*"])
    assert "*.parquet" in asked[1][1] and "*.jsonl.zst" in asked[1][1]


def test_a_misspelt_path_is_never_asked_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpora").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_from_hugging_face", lambda *_: pytest.fail("asked"))
    for reference in ("corpora/zh", "corpora/zh/texts", "./corpora/zh", "texts", "../a/b"):
        assert hub.locate(reference, is_data=True) == Path(reference)
