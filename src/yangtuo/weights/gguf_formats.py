"""Number formats of GGUF: which one each tensor gets, and the quantisation itself.

Simple formats are the `gguf` library's work. K-quants are llama.cpp's own function, which lies in the library of the
wheel xllamacpp; which tensors of q4_k_m and q5_k_m get more bits is as in llama.cpp's quantiser for Llamas.
"""

from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy

from yangtuo.errors import ConfigError
from yangtuo.weights.meta import EMBEDDING, HEAD

# What can be written, with the number of its general.file_type.
QUANTIZATIONS = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}
QUANTIZATIONS |= {"q6_k": 18, "q5_k_m": 17, "q4_k_m": 15}
_NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that do not divide into blocks of 256
_MORE_BITS = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")


def library() -> Any:
    """The `gguf` library."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("GGUF files need the gguf library", run="pip install 'yangtuo[export]'") from error
    return gguf


def tensor_type(name: str, shape: tuple[int, ...], quantization: str, num_layers: int, *, tied: bool) -> Any:
    """The format of the tensor that GGUF calls `name`; norms stay float32, as llama.cpp wants them.

    Below eight bits embedding and head keep more; rows that do not divide into blocks get wider formats, at last F16.
    """
    types, sizes = library().GGMLQuantizationType, library().GGML_QUANT_SIZES
    if len(shape) == 1:
        return types.F32
    kind = quantization.upper().removesuffix("_M")
    is_head = name == HEAD.gguf or (tied and name == EMBEDDING.gguf)
    if kind in _NARROWER:
        layer = _MORE_BITS.fullmatch(name)
        kind = "Q6_K" if is_head or (layer and _gets_more_bits(int(layer[1]), num_layers, quantization)) else kind
        kind = kind if shape[-1] % sizes[types[kind]][0] == 0 else _NARROWER[kind]
    elif kind[:2] in ("Q4", "Q5") and name in (EMBEDDING.gguf, HEAD.gguf):
        kind = "Q8_0"
    return types[kind] if shape[-1] % sizes[types[kind]][0] == 0 else types.F16


def quantize(values: Any, kind: Any) -> Any:
    """`values`, float32 (rows, width) or a vector, in the format `kind`, as bytes in an array."""
    if kind.name not in _NARROWER:
        return library().quants.quantize(values, kind)
    function = _llama_cpp_function()
    block, size = library().GGML_QUANT_SIZES[kind]
    values = numpy.ascontiguousarray(values, dtype=numpy.float32)
    rows, width = values.shape
    result = numpy.empty((rows, width // block * size), numpy.uint8)
    step = max(1, rows // (4 * (os.cpu_count() or 1)))

    def work(start: int) -> None:
        count = min(step, rows - start)
        function(int(kind), values.ctypes.data, result.ctypes.data, start * width, count, width, None)

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, range(0, rows, step)))
    return result


def _gets_more_bits(layer: int, num_layers: int, quantization: str) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = num_layers // 8
    is_outer = layer < eighth or layer >= 7 * num_layers // 8
    return quantization.endswith("_m") and (is_outer or (layer - eighth) % 3 == 2)


def _llama_cpp_function() -> Any:
    """ggml's `ggml_quantize_chunk`: type, source, target, first value, rows, values a row, importance."""
    try:
        from xllamacpp import xllamacpp

        function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except (ImportError, AttributeError, OSError) as error:
        raise ConfigError(
            "K-quants are llama.cpp's own, and need the wheel xllamacpp",
            found=str(error),
            run="pip install 'yangtuo[export]', or --quantize keep and llama.cpp's: llama-quantize IN OUT Q4_K_M",
        ) from error
    number, place = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, place, place, number, number, number, place]
    function.restype = ctypes.c_size_t
    return function
