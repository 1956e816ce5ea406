"""Where a reference to a model, tokenizer, adapter or data set lies on this disk: a path, or a hub id's snapshot.

And the way back, from a directory to a repository on a hub.

Hub ids are `owner/name` for Hugging Face and `modelscope:owner/name` for ModelScope, either with `@revision` behind it
(a branch, a tag or a commit); a part of a data set is `owner/name/FOLDER_OR_FILE`. Whether an id names a data set is
the caller's to say, for one id may name both. Downloads go through the official clients, which resume, respect
`HF_ENDPOINT` and `HF_HUB_OFFLINE`, and keep their own cache.
Keys of a hub are theirs to find (`hf auth login`, HF_TOKEN, MODELSCOPE_API_TOKEN).
No code that comes with a model is ever run. This module knows nothing of what it fetches or sends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yangtuo import files
from yangtuo.errors import ConfigError, FileError, OutputError

_HUB_ID = r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-]+))?"
_DATA_ID = _HUB_ID + r"(?P<part>/[^/].*)?"
_MODELSCOPE = "modelscope:"
_PATIENCE = 20.0  # seconds for the question whether an id exists
_PUBLIC = 5  # ModelScope's number; 1 is private, 3 internal
# The same weights for other frameworks, and Meta's originals beside converted ones: never read, often half the bytes.
_IGNORED = ["original/*", "*.msgpack", "*.h5", "*.ot", "*.onnx", "onnx/*", "*.tflite", "*.mlmodel"]
_TEXTS = ["txt", "md", "markdown", "jsonl", "json", "csv", "tsv", "parquet"]
_TEXT_FILES = [f"*.{kind}{packed}" for kind in _TEXTS for packed in ("", ".gz", ".zst")]


def locate(reference: str, *, is_data: bool = False) -> Path:
    """The local path of `reference`; downloads a snapshot where it is a hub id and no such path exists.

    `is_data`: the id is that of a data set, of which only files that hold text are fetched.

    A reference that is neither an existing path nor a hub id is returned as it is, for the caller to refuse.
    """
    path, hub_id = _parse(reference, is_data)
    if hub_id is None:
        return path
    part = hub_id["part"][1:] if is_data and hub_id["part"] else ""
    patterns = None if not is_data else [part, f"{part}/*"] if part else _TEXT_FILES
    fetch = _from_modelscope if reference.startswith(_MODELSCOPE) else _from_hugging_face
    return fetch(hub_id["name"], hub_id["revision"], patterns) / part


def is_missing(reference: str, *, is_data: bool = False) -> bool:
    """Whether `reference` is neither a path that exists nor what may be a hub id."""
    path, hub_id = _parse(reference, is_data)
    return hub_id is None and not os.path.lexists(path)


def require_found(reference: str, *, is_data: bool = False) -> None:
    """Raises `FileError` where `reference` is no path, no snapshot in the cache and nothing that the hub has.

    Fetches nothing. Whether ModelScope has an id is not asked, only whether its client is there.
    """
    if is_missing(reference, is_data=is_data):
        raise FileError(f"{reference} does not exist")
    _, hub_id = _parse(reference, is_data)
    if hub_id is None:
        return
    if reference.startswith(_MODELSCOPE):
        if find_spec("modelscope") is None:
            raise _no_modelscope(hub_id["name"])
        return
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    kind = "dataset" if is_data else "model"
    name, revision = hub_id["name"], hub_id["revision"]
    try:
        snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        try:
            HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_PATIENCE)
        except (HTTPError, OSError) as error:
            raise _not_fetched(name, error) from error
    except HFValidationError as error:
        raise _not_fetched(name, error) from error


def _parse(reference: str, is_data: bool) -> tuple[Path, re.Match[str] | None]:
    """The reference as a path, and as a hub id where it is one and no such path exists."""
    try:
        path = Path(reference).expanduser()
        if os.path.lexists(path):
            return path, None
    except (RuntimeError, ValueError) as error:
        raise FileError(f"{reference} is no path", found=str(error)) from error
    is_modelscope = reference.startswith(_MODELSCOPE)
    hub_id = re.fullmatch(_DATA_ID if is_data else _HUB_ID, reference.removeprefix(_MODELSCOPE))
    return path, None if not is_modelscope and Path(path.parts[0]).exists() else hub_id


def other_layouts(names: Iterable[str]) -> list[str]:
    """Patterns of a model's files that are not read, given the names of all: one layout of the weights is fetched.

    Hugging Face's safetensors before its pickles, either before the makers' own files and GGUF.
    """
    names = list(names)
    layouts = [
        ["model*.safetensors", "pytorch_model*.safetensors", "adapter_model.safetensors"],
        ["pytorch_model*.bin", "adapter_model.bin"],
        ["consolidated*", "*.pth"],
        ["*.gguf"],
    ]
    for place, layout in enumerate(layouts):
        if any(fnmatch(name, pattern) for name in names for pattern in layout):
            return [*_IGNORED, *(pattern for layout in layouts[place + 1 :] for pattern in layout)]
    return list(_IGNORED)


def _from_hugging_face(hub_id: str, revision: str | None, patterns: list[str] | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        if patterns:
            return Path(snapshot_download(hub_id, repo_type="dataset", revision=revision, allow_patterns=patterns))
        ignored = _IGNORED if HF_HUB_OFFLINE else other_layouts(HfApi().list_repo_files(hub_id, revision=revision))
        return Path(snapshot_download(hub_id, revision=revision, ignore_patterns=ignored))
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _not_fetched(hub_id, error) from error


def _not_fetched(hub_id: str, error: Exception) -> FileError:
    return FileError(
        f"{hub_id} is no local path, and could not be fetched from the hub",
        found=str(error).splitlines()[0],
        expected="an existing directory, or a hub id that can be reached (see HF_ENDPOINT, HF_HUB_OFFLINE)",
    )


def _from_modelscope(hub_id: str, revision: str | None, patterns: list[str] | None) -> Path:
    try:
        import modelscope
    except ImportError as error:
        raise _no_modelscope(hub_id) from error
    pinned = {} if revision is None else {"revision": revision}
    try:
        if patterns:
            return Path(modelscope.dataset_snapshot_download(hub_id, allow_patterns=patterns, **pinned))
        return Path(modelscope.snapshot_download(hub_id, ignore_patterns=_IGNORED, **pinned))
    except (OSError, ValueError) as error:
        raise FileError(
            f"{hub_id} could not be fetched from ModelScope",
            found=str(error).splitlines()[0],
            expected="an id that can be reached",
        ) from error


def _no_modelscope(hub_id: str) -> FileError:
    return FileError(f"modelscope:{hub_id} needs the ModelScope client", run="pip install 'yangtuo[hub]'")


@dataclass(frozen=True)
class Uploaded:
    """What has come of an upload."""

    url: str
    revision: str
    """The commit, or the branch where a hub does not say."""
    is_private: bool


def check_destination(reference: str) -> None:
    """Raises `ConfigError` where a reference names no repository that could be uploaded to."""
    match = re.fullmatch(_HUB_ID, reference.removeprefix(_MODELSCOPE))
    if match is None or match["revision"]:
        raise ConfigError(
            f"{reference} names no repository", expected="owner/name (Hugging Face), or modelscope:owner/name"
        )
    if reference.startswith(_MODELSCOPE):
        _require_modelscope(reference)


def upload(directory: Path, reference: str, *, is_public: bool, licence: str, message: str, listing: str) -> Uploaded:
    """Uploads all of `directory` into a repository, which is made where it is not there; goes on where it was cut.

    Files that an earlier upload left there go where the JSON file `listing`, in the repository, names them under
    `files` and `directory` holds them no more; what others put there stays. Raises `OutputError` where the repository
    is public and `is_public` is not, or the hub refuses.
    """
    send = _to_modelscope if reference.startswith(_MODELSCOPE) else _to_hugging_face
    return send(directory, reference.removeprefix(_MODELSCOPE), is_public, licence, message, listing)


def _to_hugging_face(
    directory: Path, hub_id: str, is_public: bool, licence: str, message: str, listing: str
) -> Uploaded:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    del licence  # the card says it
    api = HfApi()
    try:
        url = api.create_repo(hub_id, private=not is_public, exist_ok=True)
        repository = api.model_info(hub_id)
        if not repository.private and not is_public:
            raise _is_public(hub_id)
        present = {file.rfilename for file in repository.siblings or []}
        left = _left_over(Path(api.hf_hub_download(hub_id, listing)), directory, present) if listing in present else []
        done = api.upload_folder(
            repo_id=hub_id, folder_path=directory, commit_message=message, delete_patterns=left or None
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the last is what the client makes of a cut
        raise _refused(hub_id, error, "hf auth login") from error
    return Uploaded(str(url), done.oid, bool(repository.private))


def _left_over(listing: Path, directory: Path, present: set[str]) -> list[str]:
    """Files of an earlier upload, by its own list, that this one has no more."""
    named = files.read_json(listing).get("files", {})
    return sorted(name for name in present if name in named and not (directory / name).exists())


def _to_modelscope(directory: Path, hub_id: str, is_public: bool, licence: str, message: str, listing: str) -> Uploaded:
    from modelscope.hub.api import HubApi
    from modelscope_hub.errors import HubError

    del listing  # its client deletes by pattern, or all that is not uploaded: neither is ours to do
    try:
        api: Any = HubApi()
        visibility = "public" if is_public else "private"
        # It would call what names no licence Apache-2.0.
        api.create_repo(hub_id, repo_type="model", visibility=visibility, license=licence, exist_ok=True)
        is_private = int(api.get_model(hub_id)["Visibility"]) != _PUBLIC
        if not is_private and not is_public:
            raise _is_public(hub_id)
        done = api.upload_folder(repo_id=hub_id, folder_path=str(directory), commit_message=message)
    except (HubError, OSError, ValueError) as error:
        raise _refused(f"modelscope:{hub_id}", error, "modelscope login") from error
    last = (done[-1] if isinstance(done, list) and done else done) or {}
    commit = next((str(last[key]) for key in ("oid", "commit_id", "CommitId", "Id") if last.get(key)), "master")
    return Uploaded(f"https://modelscope.cn/models/{hub_id}", commit, is_private)


def _is_public(hub_id: str) -> OutputError:
    return OutputError(
        f"{hub_id} is public, and everybody would see what is uploaded",
        expected="--public, where that is meant, or another name, which is made private",
    )


def _refused(hub_id: str, error: Exception, login: str) -> OutputError:
    return OutputError(
        f"{hub_id} could not be uploaded to; the same command goes on where it was cut",
        found=(str(error).splitlines() or [type(error).__name__])[0],
        expected="a repository of yours, a key that may write, and a hub that can be reached",
        run=login,
    )


def _require_modelscope(reference: str) -> None:
    try:
        import modelscope  # noqa: F401
    except ImportError as error:
        raise _no_modelscope(reference.removeprefix(_MODELSCOPE)) from error
