"""Tensors on disk, one at a time: names, shapes and dtypes at once, values only when asked for.

Reads safetensors (one file, or shards with or without an index) and PyTorch archives (`.bin`, `.pth`, `.pt`), the
latter memory-mapped and weights-only, so that no pickle ever runs code. It refuses to know what a tensor means.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.artifacts.fingerprints import WEIGHT_PATTERNS
from yangtuo.errors import FileError, UserError, WeightsError, raise_all

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of number formats in a safetensors header."""

# The first pattern that matches decides: an index is exact, safetensors before pickles, weights before anything else.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
BUFFERS = re.compile(r".*rotary_emb\.inv_freq|.*\.attn\.(bias|masked_bias)|.*\.attention\.(bias|masked_bias)")
"""Buffers that old checkpoints carry and every reader computes anew."""
_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")


class Index(TypedDict):
    """An index of sharded weights."""

    weight_map: dict[str, str]


class _Safetensors:
    """One safetensors file, mapped anew for each tensor: its pages leave memory together with the tensor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        files.refuse_pointer(path)
        try:
            safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
        with path.open("rb") as file:
            header = files.parse_json(file.read(int.from_bytes(file.read(8), "little")), f"the header of {path}")
        header.pop("__metadata__", None)
        self.entries: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise WeightsError(f"{path}: {name} is stored as {entry['dtype']}", expected=" or ".join(DTYPES))
            self.entries[name] = (tuple(entry["shape"]), DTYPES[entry["dtype"]])

    def get(self, name: str) -> torch.Tensor:
        with safe_open(self._path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


class _Archive:
    """One PyTorch archive; a state dict, or one nested under a single well-known key."""

    def __init__(self, path: Path) -> None:
        state = _load_archive(path)
        for key in ("state_dict", "model", "module"):
            if isinstance(state.get(key), Mapping):
                state = state[key]
        self._tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        odd = [str(name) for name, tensor in self._tensors.items() if not _is_plain(name, tensor)]
        if odd:
            raise WeightsError(
                f"{path} holds tensors that cannot be read as weights",
                found=_shorten(odd),
                expected="named, dense tensors with values: no sparse, complex, quantised or empty (meta) ones",
            )
        if not self._tensors:
            raise WeightsError(f"{path} holds no tensors", expected="a state dict: names and tensors")
        self.entries = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def get(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def _is_plain(name: object, tensor: torch.Tensor) -> bool:
    return isinstance(name, str) and not (
        tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.dtype not in DTYPES.values()
    )


def _load_archive(path: Path) -> Mapping[str, Any]:
    files.refuse_pointer(path)
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):  # written before torch 1.6: no zip, so no mapping
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and would run code when opened",
            found=_unsafe_global(str(error)),
            expected="tensors only (opened weights-only), or safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path} is no state dict", found=type(state).__name__, expected="names and tensors")
    return state


def _unsafe_global(message: str) -> str:
    named = re.search(r"GLOBAL (\S+)|global[: ]+(\S+)|class (\S+)", message)
    return next(filter(None, named.groups()), "a pickle") if named else message.splitlines()[0]


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged or incomplete",
        found=f"{reason.splitlines()[0] if reason else 'unreadable'} ({path.stat().st_size:,} bytes)",
        expected="the whole file as published; copy or download it again",
    )


class TensorReader:
    """The tensors of one or several files under one roof; see `open_tensors`."""

    def __init__(self, files: Mapping[Path, list[str] | None]) -> None:
        self.files = list(files)
        self._homes: dict[str, _Safetensors | _Archive] = {}
        errors: list[UserError] = []
        for path, expected in files.items():
            source = _Archive(path) if path.suffix in {".bin", ".pth", ".pt"} else _Safetensors(path)
            missing = [name for name in expected or [] if name not in source.entries]
            if missing:
                errors.append(WeightsError(f"{path} lacks tensors that the index promises", found=_shorten(missing)))
            twice = [name for name in source.entries if name in self._homes]
            if twice:
                errors.append(WeightsError(f"{path} repeats tensors of another shard", found=_shorten(twice)))
            self._homes.update(dict.fromkeys(source.entries, source))
        raise_all(errors)

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the files."""
        return list(self._homes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._entry(name)[0]

    def dtype(self, name: str) -> torch.dtype:
        """Number format of a tensor, without reading it."""
        return self._entry(name)[1]

    def get(self, name: str) -> torch.Tensor:
        """The tensor; where the format allows, its memory is the mapped file: never write into it."""
        self._entry(name)
        return self._homes[name].get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def close(self) -> None:
        """Lets go of the files; tensors already handed out stay valid."""
        self._homes.clear()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        if name not in self._homes:
            raise WeightsError(f"there is no tensor {name} in {', '.join(path.name for path in self.files)}")
        return self._homes[name].entries[name]


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights in Hugging Face's layout."""
    return any(
        True for pattern in (*_INDEXES, *WEIGHT_PATTERNS[1], *WEIGHT_PATTERNS[3]) for _ in directory.glob(pattern)
    )


def open_tensors(path: str | Path) -> TensorReader:
    """Opens a weight file, or the weights of a directory.

    A directory's index, where it has one, must agree with its shards; without one, a shard missing from
    `NAME-00002-of-00005` is noticed by the names. Raises `FileError` where files are missing and `WeightsError` where
    one is damaged or would run code.
    """
    path = Path(path)
    if path.is_file():
        return TensorReader({path: None})
    if not path.is_dir():
        raise FileError(f"{path} does not exist", expected="a weight file or a directory with weights")
    for name in _INDEXES:
        if (path / name).is_file():
            return TensorReader(_read_index(path / name))
    for patterns in WEIGHT_PATTERNS:
        files = sorted({file for pattern in patterns for file in path.glob(pattern)})
        if files:
            _check_complete(path, files)
            return TensorReader(dict.fromkeys(files))
    raise FileError(
        f"{path} holds no weights",
        found=_shorten(sorted(file.name for file in path.iterdir())) or "an empty directory",
        expected="*.safetensors, pytorch_model*.bin or consolidated.*.pth",
    )


def _read_index(path: Path) -> dict[Path, list[str] | None]:
    try:
        weight_map = files.check(files.read_json(path), str(path), Index)["weight_map"]
    except FileError as error:
        raise FileError(
            f"{path} is no index of weights", found=error.found or error.problem, expected='{"weight_map": {...}}'
        ) from error
    names = set(weight_map.values())
    climbing = sorted(name for name in names if Path(name).name != name)
    if climbing:
        raise FileError(f"{path} points outside its directory", found=_shorten(climbing), expected="plain file names")
    missing = sorted(name for name in names if not (path.parent / name).is_file())
    if missing:
        raise FileError(
            f"{path.parent} lacks weight files that its index names",
            found=f"missing: {_shorten(missing)}",
            expected=f"{len(names)} files; copy or download them again",
        )
    homes: dict[Path, list[str] | None] = {}
    for name in sorted(names):
        homes[path.parent / name] = [tensor for tensor, file in weight_map.items() if file == name]
    return homes


def _check_complete(directory: Path, files: list[Path]) -> None:
    shards = [match for file in files if (match := _SHARD_NAME.fullmatch(file.name))]
    promised = {f"{m[1]}-{number:05d}-of-{m[3]}.{m[4]}" for m in shards for number in range(1, int(m[3]) + 1)}
    missing = sorted(promised - {file.name for file in files})
    if missing:
        raise FileError(f"{directory} lacks weight files", found=f"missing: {_shorten(missing)}")


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
