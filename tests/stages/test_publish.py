"""Publishing: what goes to a hub, what never does, and that what is fetched again is what was sent.

The hub is a server on loopback that speaks Hugging Face's protocol to its real client.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from yangtuo import cli, hub
from yangtuo.artifacts.draft import draft
from yangtuo.artifacts.lineage import check_chain, merged_lineage
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.artifacts.portable import portable_name, without_paths
from yangtuo.config.convert import ConvertConfig
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.config.merge import MergeConfig
from yangtuo.config.publish import PublishConfig
from yangtuo.errors import ConfigError, FileError, LineageError, OutputError
from yangtuo.stages import convert, evaluate, merge, publish

KEY = "hf_" + "A" * 34


class Hub:
    """The state of a hub: repositories with their files, and large objects by their sum."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.break_at: int | None = None
        """Number of large objects after which uploads fail."""

    def commit(self, here: str, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        repository = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository["files"][value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository["files"][value["path"]]
        names = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in repository["files"].items()})
        repository["sha"] = hashlib.sha1(names.encode()).hexdigest()
        return {"commitOid": repository["sha"], "commitUrl": f"{here}/{name}/commit/{repository['sha']}"}

    def info(self, name: str) -> dict[str, Any]:
        repository = self.repositories[name]
        siblings = [{"rfilename": path} for path in repository["files"]]
        return {"id": name, "sha": repository["sha"], "private": repository["private"], "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """Hugging Face's endpoints, as far as an upload and a download ask for them."""

    state: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.state.repositories:
                return self._answer({"url": f"{here}/{name}"}, 409)
            files = {".gitattributes": b"*.safetensors filter=lfs"}
            private = asked.get("visibility") == "private"
            self.state.repositories[name] = {"private": private, "files": files, "sha": "0" * 40}
            return self._answer({"url": f"{here}/{name}"})
        if self.path == "/api/validate-yaml":
            assert yaml.safe_load(json.loads(body)["content"].split("---")[1])["license"]
            return self._answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]
            return self._answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                one
                if one["oid"] in self.state.objects
                else {**one, "actions": {"upload": {"href": f"{here}/objects/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            return self._answer(self.state.commit(here, match[1], [json.loads(line) for line in body.splitlines()]))
        return self._answer({}, 404)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        if self.state.break_at is not None and len(self.state.puts) >= self.state.break_at:
            return self._answer({}, 403)
        self.state.puts.append(oid)
        self.state.objects[oid] = data
        return self._answer({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?", path):
            files = self.state.repositories[match[1]]["files"]
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            return self._answer(rows)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path)
        if match and match[1] in self.state.repositories:
            return self._answer(self.state.info(match[1]))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repository = self.state.repositories[match[1]]
            if match[2] in repository["files"]:
                data = repository["files"][match[2]]
                headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository["sha"]}
                return self._answer(data, headers=headers)
        return self._answer({}, 404)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def fake_hub() -> Iterator[tuple[str, Hub]]:
    state = Hub()
    handler = type("OwnHandler", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", state
        server.shutdown()


def run_commands(url: str, cwd: Path, *commands: list[str]) -> list[tuple[int, dict[str, Any], str]]:
    """Runs commands with `--json`, one after the other in one process that knows the hub; status, result and errors."""
    script = (
        "import contextlib, io, json, sys\n"
        "from yangtuo import cli\n"
        "shown = []\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    cli.console.stderr.file = err\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        status = cli.invoke([*command, '--json'])\n"
        "    shown.append([status, json.loads(out.getvalue() or '{}'), err.getvalue()])\n"
        "print(json.dumps(shown))\n"
    )
    own = {"HF_ENDPOINT": url, "HF_HOME": str(cwd / "hf"), "HF_TOKEN": KEY, "HF_HUB_DISABLE_XET": "1"}
    own |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        env={**os.environ, **own},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture
def model(pico_model: Path, tmp_path: Path) -> Artifact:
    return convert.run(ConvertConfig(source=str(pico_model), output=tmp_path / "base"))


def test_what_was_published_is_private_and_verifies_when_fetched_again(
    model: Artifact, tmp_path: Path, fake_hub: tuple[str, Hub]
) -> None:
    url, state = fake_hub
    (model.path / "notes.txt").write_text("my own notes, no part of the artifact", encoding="utf-8")
    send = ["publish", "--artifact", str(model.path), "--to", "me/zh", "--licence", "mit"]
    (sent, again, verified) = run_commands(url, tmp_path, send, send, ["inspect", "me/zh", "--verify"])
    assert sent[0] == again[0] == verified[0] == 0, "\n".join((sent[2], again[2], verified[2]))
    repository = state.repositories["me/zh"]
    assert repository["private"] and sent[1]["seen"] == "private"
    assert sent[1]["revision"] == again[1]["revision"] == repository["sha"], "a second try has nothing to send"
    expected = {*model.manifest.files, "README.md", "yangtuo.json", ".gitattributes"}
    assert set(repository["files"]) == expected, "no stray file of the directory goes along"
    assert verified[1]["fingerprint"] == model.fingerprint and verified[1]["verified"] == f"{len(expected) - 2} files"
    everything = b"".join(repository["files"].values())
    assert str(tmp_path).encode() not in everything and KEY.encode() not in everything
    assert len(state.puts) == 1, "weights that are there are not sent twice"


def test_a_public_repository_is_not_published_into_unasked(
    model: Artifact, tmp_path: Path, fake_hub: tuple[str, Hub]
) -> None:
    url, state = fake_hub
    state.repositories["me/open"] = {"private": False, "files": {"LICENSE": b"mine"}, "sha": "1" * 40}
    send = ["publish", "--artifact", str(model.path), "--to", "me/open", "--licence", "mit"]
    other = [*send[:4], "me/new", *send[5:], "--public"]
    refused, meant, new = run_commands(url, tmp_path, send, [*send, "--public"], other)
    assert refused[0] == 2 and "me/open is public" in refused[2]
    assert meant[0] == new[0] == 0 and meant[1]["seen"] == "public" and not state.repositories["me/new"]["private"]
    assert state.repositories["me/open"]["files"]["LICENSE"] == b"mine", "what others put there stays"


def test_a_cut_upload_goes_on_and_a_second_artifact_leaves_nothing_of_the_first(
    pico_model: Path, model: Artifact, tmp_path: Path, fake_hub: tuple[str, Hub], write_adapter: Callable[..., Path]
) -> None:
    url, state = fake_hub
    adapter = write_adapter(tmp_path / "adapter", pico_model, 1)
    config = MergeConfig(base=str(pico_model), adapter=(str(adapter),), output=tmp_path / "m", shard_size="60KB")
    sharded = merge.run(config)
    weights = [name for name in sharded.manifest.files if name.endswith(".safetensors")]
    assert len(weights) > 2
    state.break_at = 2
    send = ["publish", "--artifact", str(sharded.path), "--to", "me/zh", "--licence", "mit"]
    (cut,) = run_commands(url, tmp_path, send)
    assert cut[0] == 2 and "goes on where it was cut" in cut[2]
    state.break_at = None
    other = ["publish", "--artifact", str(model.path), "--to", "me/zh", "--licence", "mit"]
    whole, replaced, verified = run_commands(url, tmp_path, send, other, ["inspect", "me/zh", "--verify"])
    assert whole[0] == 0 and len(state.puts) == len(weights) + 1, "no shard is sent twice"
    assert replaced[0] == verified[0] == 0
    left = {name for name in state.repositories["me/zh"]["files"] if name.endswith(".safetensors")}
    assert left == {"model.safetensors"}


def test_an_adapter_names_its_base_without_a_path_and_is_still_known_in_a_chain(
    model: Artifact, tmp_path: Path, fake_hub: tuple[str, Hub], train_adapter: Callable[..., Path]
) -> None:
    url, state = fake_hub
    first = open_artifact(train_adapter(tmp_path / "first", model.path))
    assert str(tmp_path) in (first.path / "adapter_config.json").read_text("utf-8"), "PEFT writes where the base lay"
    send = ["publish", "--artifact", str(first.path), "--to", "me/lora", "--licence", "mit", "--base", "me/base"]
    sent, verified = run_commands(url, tmp_path, send, ["inspect", "me/lora", "--verify"])
    assert sent[0] == verified[0] == 0, (sent, verified)
    files = state.repositories["me/lora"]["files"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert str(tmp_path).encode() not in b"".join(files.values())
    fetched = open_artifact(verified[1]["path"])
    assert fetched.identity == first.fingerprint != fetched.fingerprint
    merged = merge.run(MergeConfig(base=str(model.path), adapter=(str(first.path),), output=tmp_path / "merged"))
    second = open_artifact(train_adapter(tmp_path / "second", merged.path, seed=2))
    assert check_chain(model, [fetched, second]) == []
    assert merged_lineage(model, [fetched]) == merged.lineage


def test_a_dry_run_writes_the_card_and_sends_nothing(
    model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 20, encoding="utf-8")
    data = (f"en={tmp_path / 'text.txt'}",)
    score = evaluate.run(
        EvaluateConfig(model=(f"base={model.path}",), suite="bits-per-byte", data=data, output=tmp_path / "scores")
    )
    command = ["publish", "--artifact", "base", "--to", "me/zh", "--licence", "cc-by-nc-4.0", "--language", "en"]
    assert cli.invoke([*command, "--scores", str(score.path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 40 and "--card base-card.md" in shown.splitlines()[-1]
    _, head, body = (tmp_path / "base-card.md").read_text("utf-8").split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["license"] == "cc-by-nc-4.0" and values["language"] == ["en"]
    figures = score.manifest.details["results"]["base"]["en"]
    assert f"{figures['bits_per_byte']:.4f}" in body and "lower is better" in body
    assert "yangtuo convert --source model" in body and "yangtuo inspect me/zh --verify" in body
    assert str(tmp_path) not in body
    assert cli.invoke([*command, "--dry-run"]) == 2, "a card that was edited is never overwritten"
    assert "never overwritten" in capsys.readouterr().err


def test_figures_of_something_else_are_refused(
    model: Artifact, pico_tied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 20, encoding="utf-8")
    data, other = (str(tmp_path / "text.txt"),), (str(pico_tied_model),)
    score = evaluate.run(EvaluateConfig(model=other, suite="bits-per-byte", data=data, output=tmp_path / "scores"))
    with pytest.raises(LineageError, match="measured something else"):
        publish.run(config(model, scores=(str(score.path),)))


def config(artifact: Artifact, **options: Any) -> PublishConfig:
    return PublishConfig(artifact=str(artifact.path), to="me/x", dry_run=True, **{"licence": "mit", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"licence": "Apache 2.0"}, "did you mean 'apache-2.0'"),
        ({"licence": "llama-2"}, "did you mean 'llama2'"),
        ({"to": "zh"}, "names no repository"),
        ({"to": "me/zh@main"}, "names no repository"),
    ],
)
def test_a_mistake_is_named_before_any_work(model: Artifact, options: dict[str, str], message: str) -> None:
    values = {"artifact": str(model.path), "to": "me/zh", "licence": "mit", **options}
    with pytest.raises(ConfigError, match=message):
        publish.run(PublishConfig(**values))


def test_a_licence_is_asked_for(model: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["publish", "--artifact", str(model.path), "--to", "me/zh"]) == 2
    assert "--licence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.json", f'{{"key": "{KEY}"}}', "looks like a key"),
        ("tokens.txt", "ms-01234567-89ab-cdef-0123-456789abcdef", "looks like a key"),
        ("run.log", "read {tmp_path}/texts/a.txt", "names a directory of this machine"),
        ("home.log", "read {home}/texts/a.txt", "names a directory of this machine"),
    ],
)
def test_keys_and_places_never_leave(tmp_path: Path, pico_model: Path, name: str, text: str, message: str) -> None:
    with draft(ConvertConfig(source=str(pico_model), output=tmp_path / "made"), Kind.MODEL, {}) as made:
        (made.path / "config.json").write_text("{}", encoding="utf-8")
        told = text.replace("{tmp_path}", str(tmp_path)).replace("{home}", str(Path.home()))
        (made.path / name).write_text(told, encoding="utf-8")
        made.describe()
    with pytest.raises(FileError, match=message):
        publish.run(config(made.artifact))


def test_a_changed_or_foreign_artifact_is_refused(model: Artifact, pico_model: Path) -> None:
    with pytest.raises(FileError, match="no manifest"):
        publish.run(config(open_artifact(pico_model)))
    (model.path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileError, match="is not what it was"):
        publish.run(config(model))


def test_a_manifest_cannot_name_files_outside(model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine", encoding="utf-8")
    manifest = json.loads((model.path / "yangtuo.json").read_text("utf-8"))
    manifest["files"]["../secret.txt"] = hashlib.sha256(b"mine").hexdigest()
    (model.path / "yangtuo.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(FileError, match=r"secret\.txt, which lies outside|secret\.txt is missing"):
        publish.run(config(open_artifact(model.path)))


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("/home/me/llama/7B", "7B"),
        ("zh=/home/me/texts:0.2", "zh=texts:0.2"),
        ("~/models/x", "x"),
        ("../../elsewhere/x", "x"),
        (r"C:\Users\me\x", "x"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1/4 of it, and/or 2 tokens/s", "1/4 of it, and/or 2 tokens/s"),
        ("owner/name@main", "owner/name@main"),
        ({"/home/me/a.txt": ["read /home/me/b.txt"]}, {"a.txt": ["read b.txt"]}),
    ],
)
def test_paths_are_reduced_to_names(told: Any, kept: Any) -> None:
    assert without_paths(told) == kept


def test_a_cached_snapshot_is_named_by_its_hub_id() -> None:
    path = "/home/me/.cache/huggingface/hub/models--owner--some-model/snapshots/0123abc"
    assert portable_name(path) == "owner/some-model@0123abc"


def test_modelscope_is_asked_in_its_own_words(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client calls what names no licence Apache-2.0, and makes what names no visibility public."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class HubApi:
        visibility = 1

        def create_repo(self, name: str, **options: Any) -> None:
            asked.append((name, options))

        def get_model(self, _name: str) -> dict[str, Any]:
            return {"Visibility": self.visibility}

        def upload_folder(self, **options: Any) -> list[dict[str, str]]:
            asked.append((options["repo_id"], {"files": sorted(os.listdir(options["folder_path"]))}))  # noqa: PTH208
            return [{"oid": "abc"}]

    modules = {name: types.ModuleType(name) for name in ("modelscope", "modelscope.hub", "modelscope.hub.api")}
    modules["modelscope.hub.api"].HubApi = HubApi
    modules["modelscope_hub"], modules["modelscope_hub.errors"] = map(types.ModuleType, ("modelscope_hub", "errors"))
    modules["modelscope_hub.errors"].HubError = type("HubError", (Exception,), {})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    options = {"artifact": str(model.path), "to": "modelscope:me/zh", "licence": "llama2"}
    done = publish.run(PublishConfig(**options))
    assert asked[0] == (
        "me/zh",
        {"repo_type": "model", "visibility": "private", "license": "llama2", "exist_ok": True},
    )
    assert {"README.md", "yangtuo.json", "model.safetensors"} <= set(asked[1][1]["files"])
    assert done["revision"] == "abc" and done["seen"] == "private"
    HubApi.visibility = 5
    with pytest.raises(OutputError, match="is public"):
        publish.run(PublishConfig(**options))


def test_without_modelscopes_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(FileError, match=r"yangtuo\[hub\]"):
        hub.check_destination("modelscope:me/zh")
