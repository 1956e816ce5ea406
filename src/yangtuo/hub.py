"""Where a reference to a model, tokenizer or adapter lies on this disk: a path, or a hub id resolved to a snapshot.

Hub ids are `owner/name` for Hugging Face and `modelscope:owner/name` for ModelScope. Downloads go through the
official clients, which resume, respect `HF_ENDPOINT` and `HF_HUB_OFFLINE`, and keep their own cache. No code that
comes with a model is ever run. This module knows nothing of what it fetches.
"""

from __future__ import annotations

import re
from pathlib import Path

from yangtuo.errors import FileError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MODELSCOPE = "modelscope:"
# The same weights for other frameworks, and Meta's originals beside converted ones: never read, often half the bytes.
_IGNORED = ["original/*", "*.msgpack", "*.h5", "*.ot", "*.onnx", "onnx/*", "*.tflite", "*.mlmodel"]


def locate(reference: str) -> Path:
    """The local path of `reference`; downloads a snapshot where it is a hub id and no such path exists.

    A reference that is neither an existing path nor a hub id is returned as it is, for the caller to refuse.
    """
    path = Path(reference).expanduser()
    if path.exists():
        return path
    if reference.startswith(_MODELSCOPE):
        return _from_modelscope(reference.removeprefix(_MODELSCOPE))
    if _HUB_ID.fullmatch(reference) and not path.parent.exists():
        return _from_hugging_face(reference)
    return path


def _from_hugging_face(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, ignore_patterns=_IGNORED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileError(
            f"{hub_id} is no local path, and could not be fetched from the hub",
            found=str(error).splitlines()[0],
            expected="an existing directory, or a hub id that can be reached (see HF_ENDPOINT, HF_HUB_OFFLINE)",
        ) from error


def _from_modelscope(hub_id: str) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise FileError(f"modelscope:{hub_id} needs the ModelScope client", run="pip install 'yangtuo[hub]'") from error
    try:
        return Path(snapshot_download(hub_id))
    except (OSError, ValueError) as error:
        raise FileError(
            f"{hub_id} could not be fetched from ModelScope",
            found=str(error).splitlines()[0],
            expected="a model id that can be reached",
        ) from error
