"""The header of a GGUF file, walked before the library reads it: every count and length against the file's size.

The library allocates and loops by what the header says, minutes and gigabytes for a hundred bytes. Format: docs/gguf.md
of ggml-org/ggml.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from yangtuo import files
from yangtuo.errors import WeightsError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of scalars by type
_STRING, _ARRAY = 8, 9
_LEAST_ENTRY, _LEAST_TENSOR = 13, 32  # bytes
_MOST_DIMENSIONS = 4
_MOST_NESTED = 3


def check_header(path: Path) -> None:
    """Raises `WeightsError` where a GGUF file's header claims more than the file holds; other files go through."""
    size = files.check_input(path)
    files.refuse_pointer(path)
    with files.open_input(path) as file:
        if size < 24 or file.read(4) != b"GGUF":
            return  # the library says what it is not
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _Walk(data, size).header()
            except (_BeyondError, struct.error) as error:
                raise WeightsError(
                    f"{path} is no GGUF file that can be read",
                    found=f"{error} ({size:,} bytes)",
                    expected="the whole file as published",
                ) from error


class _BeyondError(Exception):
    """A count that the file cannot hold."""


class _Walk:
    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 4

    def header(self) -> None:
        version = self._number("<I")
        if version not in (2, 3):
            raise _BeyondError(f"version {version}, or another byte order")
        num_tensors, num_entries = self._number("<Q"), self._number("<Q")
        self._need(num_entries * _LEAST_ENTRY, f"{num_entries:,} entries")
        self._need(num_tensors * _LEAST_TENSOR, f"{num_tensors:,} tensors")
        for _ in range(num_entries):
            self._string()
            self._value(self._number("<I"), 0)
        for _ in range(num_tensors):
            self._tensor()

    def _tensor(self) -> None:
        self._string()
        num_dimensions = self._number("<I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise _BeyondError(f"a tensor of {num_dimensions:,} dimensions")
        values = 1
        for _ in range(num_dimensions):
            values *= self._number("<Q")
        self._number("<I")
        offset = self._number("<Q")
        if values > self._size * 8 or offset > self._size:  # no format stores less than a bit
            raise _BeyondError(f"a tensor of {values:,} values at byte {offset:,}")

    def _value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            self._need(count * _SIZES.get(inner, 8), f"an array of {count:,}")
            if inner in _SIZES:
                self._at += count * _SIZES[inner]
                return
            if depth > _MOST_NESTED:
                raise _BeyondError("arrays in arrays")
            for _ in range(count):
                self._value(inner, depth + 1)
        elif kind in _SIZES:
            self._need(_SIZES[kind], "a value")
            self._at += _SIZES[kind]
        else:
            raise _BeyondError(f"a value of type {kind}")

    def _string(self) -> None:
        length = self._number("<Q")
        self._need(length, f"a text of {length:,} bytes")
        self._at += length

    def _number(self, form: str) -> int:
        value: int = struct.unpack_from(form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _need(self, num_bytes: int, what: str) -> None:
        if self._at + num_bytes > self._size:
            raise _BeyondError(f"{what}, beyond the end of the file")
