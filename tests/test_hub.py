"""Hub ids: whose path wins, which client is asked, and what the user reads when it cannot answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from yangtuo import hub
from yangtuo.errors import FileError

LOCATE = """
import sys
from yangtuo import hub
from yangtuo.errors import FileError
try:
    print(hub.locate(sys.argv[1]))
except FileError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[str]]]:
    """A hub that knows no model, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def locate(reference: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    values = {**os.environ, "HF_HOME": str(tmp_path / "cache"), **environment}
    command = [sys.executable, "-c", LOCATE, reference]
    return subprocess.run(command, env=values, capture_output=True, text=True, check=False)


def test_an_existing_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.locate("owner/name") == Path("owner/name")
    assert hub.locate("owner/missing") == Path("owner/missing"), "a misspelt path beside others is no hub id"
    assert hub.locate("/no/such/place") == Path("/no/such/place")


def test_the_endpoint_of_the_environment_is_asked(tmp_path: Path, endpoint: tuple[str, list[str]]) -> None:
    url, asked = endpoint
    result = locate("some-owner/some-model", tmp_path, HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    assert any("/api/models/some-owner/some-model" in path for path in asked)
    assert result.returncode == 2 and "some-owner/some-model is no local path" in result.stdout


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    result = locate("some-owner/some-model", tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert result.returncode == 2 and "could not be fetched from the hub" in result.stdout, result.stderr


def test_offline_nothing_is_asked_and_the_message_says_so(tmp_path: Path, endpoint: tuple[str, list[str]]) -> None:
    url, asked = endpoint
    result = locate("some-owner/some-model", tmp_path, HF_ENDPOINT=url, HF_HUB_OFFLINE="1")
    assert not asked
    assert result.returncode == 2 and "could not be fetched" in result.stdout and "HF_HUB_OFFLINE" in result.stdout


def test_offline_a_snapshot_in_the_cache_is_used(tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "hub" / "models--some-owner--some-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    result = locate("some-owner/some-model", tmp_path, HF_HUB_OFFLINE="1")
    assert result.stdout.strip() == str(snapshot), result


def test_modelscope_ids_go_to_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def snapshot_download(hub_id: str, ignore_patterns: list[str], revision: str = "master") -> str:
        assert "*.h5" in ignore_patterns
        asked.append(f"{hub_id}@{revision}")
        if hub_id == "owner/broken":
            raise ValueError("no such model")
        return str(tmp_path)

    client = types.ModuleType("modelscope")
    client.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", client)
    assert hub.locate("modelscope:owner/name") == hub.locate("modelscope:owner/name@v1.0") == tmp_path
    with pytest.raises(FileError, match="could not be fetched from ModelScope"):
        hub.locate("modelscope:owner/broken")
    assert asked == ["owner/name@master", "owner/name@v1.0", "owner/broken@master"]


def test_without_the_modelscope_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(FileError, match=r"yangtuo\[hub\]"):
        hub.locate("modelscope:owner/name")


def test_a_revision_is_asked_for_by_name(tmp_path: Path, endpoint: tuple[str, list[str]]) -> None:
    url, asked = endpoint
    locate("some-owner/some-model@v1.5", tmp_path, HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    about_the_model = [path for path in asked if "some-model" in path]
    assert about_the_model and all("v1.5" in path for path in about_the_model), asked


def test_one_layout_of_the_weights_is_fetched() -> None:
    """A Mistral repository holds the same weights three times; a user with a slow line waits for one."""
    names = ["config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "consolidated.safetensors"]
    ignored = hub.other_layouts([*names, "model.gguf", "tokenizer.json"])
    fetched = [name for name in [*names, "model.gguf", "tokenizer.json"] if not any(map(_matches(name), ignored))]
    assert fetched == ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"]
    assert not any(map(_matches("pytorch_model.bin"), hub.other_layouts(["config.json", "pytorch_model.bin"])))
    assert not any(map(_matches("model.q8.gguf"), hub.other_layouts(["model.q8.gguf"])))


def _matches(name: str) -> Callable[[str], bool]:
    return lambda pattern: fnmatch(name, pattern)
