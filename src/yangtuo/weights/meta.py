"""Meta's layout of LLaMA 1, 2, 3, 3.1 and 3.2 (`consolidated.*.pth`, `params.json`), to and from Hugging Face's.

The tables say how each tensor is called, how it is split over shards, and whether its rows are in rotary order: Meta
rotates neighbouring pairs of a head's rows, Hugging Face the two halves. This module refuses to know tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.errors import FileError, UserError, WeightsError, raise_all
from yangtuo.weights.reader import TensorReader, open_tensors


class Split(Enum):
    """How model parallelism cuts a tensor."""

    ROWS = "rows"
    COLUMNS = "columns"
    WHOLE = "not at all"
    EMBEDDING = "columns before Llama 3, rows since"


class Heads(Enum):
    """Whose rows are in rotary order."""

    QUERY = "num_attention_heads"
    KEY = "num_key_value_heads"
    VALUE = "not rotated, but replicated with the keys"


@dataclass(frozen=True)
class Entry:
    """One tensor's name in each layout."""

    meta: str
    hugging_face: str
    gguf: str
    split: Split
    heads: Heads | None = None


LAYER = (
    Entry("attention_norm.weight", "input_layernorm.weight", "attn_norm.weight", Split.WHOLE),
    Entry("attention.wq.weight", "self_attn.q_proj.weight", "attn_q.weight", Split.ROWS, Heads.QUERY),
    Entry("attention.wk.weight", "self_attn.k_proj.weight", "attn_k.weight", Split.ROWS, Heads.KEY),
    Entry("attention.wv.weight", "self_attn.v_proj.weight", "attn_v.weight", Split.ROWS, Heads.VALUE),
    Entry("attention.wo.weight", "self_attn.o_proj.weight", "attn_output.weight", Split.COLUMNS),
    Entry("ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight", Split.WHOLE),
    Entry("feed_forward.w1.weight", "mlp.gate_proj.weight", "ffn_gate.weight", Split.ROWS),
    Entry("feed_forward.w3.weight", "mlp.up_proj.weight", "ffn_up.weight", Split.ROWS),
    Entry("feed_forward.w2.weight", "mlp.down_proj.weight", "ffn_down.weight", Split.COLUMNS),
)
EMBEDDING = Entry("tok_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight", Split.EMBEDDING)
NORM = Entry("norm.weight", "model.norm.weight", "output_norm.weight", Split.WHOLE)
HEAD = Entry("output.weight", "lm_head.weight", "output.weight", Split.ROWS)
SKIPPED = re.compile(r"rope\.freqs|layers\.\d+\.attention\.(inner_attention\.)?rope\.freqs|mask|freqs_cis")
LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "initializer_range": 0.02,
}
"""What config.json says of every Llama."""

_AXES: dict[Split, int | None] = {Split.ROWS: 0, Split.COLUMNS: 1, Split.WHOLE: None}
_REQUIRED = ("dim", "n_layers", "n_heads")


def table(num_layers: int) -> list[Entry]:
    """All tensors of a model, in the order in which they are written."""
    layers = [
        Entry(
            f"layers.{layer}.{entry.meta}",
            f"model.layers.{layer}.{entry.hugging_face}",
            f"blk.{layer}.{entry.gguf}",
            entry.split,
            entry.heads,
        )
        for layer in range(num_layers)
        for entry in LAYER
    ]
    return [EMBEDDING, *layers, NORM, HEAD]


def is_meta(path: Path) -> bool:
    """Whether a directory is in Meta's layout."""
    return path.is_dir() and (path / "params.json").is_file() and bool(shard_files(path))


def shard_files(path: Path) -> list[Path]:
    """The weight files of a directory in Meta's layout, in order of their ranks."""
    for suffix in ("safetensors", "pth"):
        files = sorted(path.glob(f"consolidated*.{suffix}"))
        if files:
            return files
    return []


def tokenizer_file(path: Path) -> Path | None:
    """`tokenizer.model` beside the weights, or one level up, as Meta ships LLaMA 1."""
    beside = (path / "tokenizer.model", path.resolve().parent / "tokenizer.model")
    return next((file for file in beside if file.is_file()), None)


class MetaTensors:
    """The tensors of a directory in Meta's layout, joined over shards, under Hugging Face's names and row order."""

    def __init__(self, path: Path) -> None:
        self.params = _read_params(path / "params.json")
        self._shards = _open_shards(path)
        self._dim = int(self.params["dim"])
        self._num_heads = int(self.params["n_heads"])
        self._num_key_value_heads = int(self.params.get("n_kv_heads") or self._num_heads)
        self._head_dim = int(self.params.get("head_dim") or self._dim // self._num_heads)
        self._entries = {entry.hugging_face: entry for entry in table(int(self.params["n_layers"]))}
        raise_all(self._problems(path))
        self.tied = self._is_tied()
        if self.tied:
            del self._entries[HEAD.hugging_face]

    def names(self) -> list[str]:
        """Hugging Face's names, in the order of the table."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the joined tensor."""
        entry = self._entries[name]
        if entry.heads in (Heads.KEY, Heads.VALUE):
            return (self._num_key_value_heads * self._head_dim, self._dim)
        shapes = [shard.shape(entry.meta) for shard in self._shards]
        axis = self._axis(entry)
        if axis is None:
            return shapes[0]
        return tuple(sum(s[i] for s in shapes) if i == axis else size for i, size in enumerate(shapes[0]))

    def dtype(self, name: str) -> torch.dtype:
        """Number format as published."""
        return self._shards[0].dtype(self._entries[name].meta)

    def get(self, name: str) -> torch.Tensor:
        """The joined tensor; raises `WeightsError` where replicated parts differ."""
        entry = self._entries[name]
        parts = [shard.get(entry.meta) for shard in self._shards]
        axis = self._axis(entry)
        if axis is None:
            _check_replicas(entry.meta, parts)
            return parts[0]
        if entry.heads in (Heads.KEY, Heads.VALUE):
            parts = self._distinct_heads(entry.meta, parts)
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
        if entry.heads is Heads.QUERY:
            return to_halves(tensor, self._num_heads)
        return to_halves(tensor, self._num_key_value_heads) if entry.heads is Heads.KEY else tensor

    def config(self) -> dict[str, Any]:
        """What config.json says of this model."""
        return hugging_face_config(self.params, self)

    def _axis(self, entry: Entry) -> int | None:
        if entry.split is Split.EMBEDDING:
            return 0 if self._shards[0].shape(entry.meta)[1] == self._dim else 1
        return _AXES[entry.split]

    def _distinct_heads(self, name: str, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """With more shards than key-value heads, each head stands in several neighbouring shards: one is kept."""
        copies = sum(part.shape[0] for part in parts) // (self._num_key_value_heads * self._head_dim)
        for start in range(0, len(parts), copies) if copies > 1 else ():
            _check_replicas(name, parts[start : start + copies])
        return parts[::copies]

    def _is_tied(self) -> bool:
        if HEAD.meta not in self._shards[0]:
            return True
        if self.shape(EMBEDDING.hugging_face) != self.shape(HEAD.hugging_face):
            return False
        return torch.equal(self.get(EMBEDDING.hugging_face), self.get(HEAD.hugging_face))

    def _problems(self, path: Path) -> list[UserError]:
        errors: list[UserError] = []
        wanted = {entry.meta for entry in self._entries.values()}
        for shard in self._shards:
            names = set(shard.names())
            file = shard.files[0]
            missing = sorted(wanted - names - {HEAD.meta})
            unknown = sorted(name for name in names - wanted if not SKIPPED.fullmatch(name))
            if missing:
                errors.append(WeightsError(f"{file} lacks tensors of params.json's model", found=_shorten(missing)))
            if unknown:
                errors.append(WeightsError(f"{file} holds tensors that no Llama has", found=_shorten(unknown)))
        if errors:
            return errors
        sizes = {entry.meta: 1 if entry.split is Split.WHOLE else 2 for entry in self._entries.values()}
        for shard in self._shards:
            odd = [name for name, size in sizes.items() if name in shard and len(shard.shape(name)) != size]
            if odd:
                errors.append(WeightsError(f"{shard.files[0]} holds tensors of other dimensions", found=_shorten(odd)))
        if errors:
            return errors
        for entry in self._entries.values():
            errors.extend(self._shape_problem(entry, path))
        return errors

    def _shape_problem(self, entry: Entry, path: Path) -> list[UserError]:
        if entry is HEAD and HEAD.meta not in self._shards[0]:
            return []
        shapes = [shard.shape(entry.meta) for shard in self._shards]
        axis = self._axis(entry)
        free = {tuple(size for i, size in enumerate(shape) if i != axis) for shape in shapes}
        expected = self._expected_sizes(entry)
        joined = tuple(sum(shape[i] for shape in shapes) if i == axis else size for i, size in enumerate(shapes[0]))
        replicated = entry.heads in (Heads.KEY, Heads.VALUE) and joined[0] % self._head_dim == 0
        sizes_fit = len(joined) == len(expected) and all(
            want is None or have == want or (i == 0 and replicated and want and have % want == 0)
            for i, (have, want) in enumerate(zip(joined, expected, strict=True))
        )
        if len(free) == 1 and sizes_fit:
            return []
        return [
            WeightsError(
                f"{entry.meta} in {path} does not fit params.json",
                found=f"{' + '.join(map(str, shapes))}",
                expected=f"{tuple('any' if size is None else size for size in expected)} in all "
                f"for dim {self._dim}, {self._num_heads} heads over {self._num_key_value_heads}",
            )
        ]

    def _expected_sizes(self, entry: Entry) -> tuple[int | None, ...]:
        if entry.heads in (Heads.KEY, Heads.VALUE):
            return (self._num_key_value_heads * self._head_dim, self._dim)
        if entry.heads is Heads.QUERY:
            return (self._num_heads * self._head_dim, self._dim)
        if entry.meta.endswith("wo.weight"):
            return (self._dim, self._num_heads * self._head_dim)
        if entry.split is Split.WHOLE:
            return (self._dim,)
        return (self._dim, None) if entry.split is Split.COLUMNS else (None, self._dim)


def to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders rows from Meta's neighbouring pairs to Hugging Face's halves, head by head."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def to_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undoes `to_halves`."""
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def hugging_face_config(params: Mapping[str, Any], tensors: MetaTensors) -> dict[str, Any]:
    """config.json of a model in Meta's layout; what params.json leaves open follows from the generation it is of."""
    theta = float(params.get("rope_theta", 10000.0))
    scaled = bool(params.get("use_scaled_rope", False))
    config: dict[str, Any] = {
        **LLAMA_CONFIG,
        "vocab_size": tensors.shape(EMBEDDING.hugging_face)[0],
        "hidden_size": int(params["dim"]),
        "intermediate_size": tensors.shape("model.layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": int(params["n_layers"]),
        "num_attention_heads": int(params["n_heads"]),
        "num_key_value_heads": int(params.get("n_kv_heads") or params["n_heads"]),
        "rms_norm_eps": float(params.get("norm_eps", 1e-5)),
        "rope_theta": theta,
        "max_position_embeddings": int(params.get("max_seq_len") or _context(params, theta, scaled)),
        "tie_word_embeddings": tensors.tied,
        "torch_dtype": str(tensors.dtype(EMBEDDING.hugging_face)).removeprefix("torch."),
    }
    if params.get("head_dim"):
        config["head_dim"] = int(params["head_dim"])
    if params.get("sliding_window"):  # Mistral's own files are in Meta's layout too
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        config["sliding_window"] = int(params["sliding_window"])
    if scaled:
        config["rope_scaling"] = llama_3_scaling(_scaling_factor(params, tensors.tied))
    return config


def llama_3_scaling(factor: float) -> dict[str, Any]:
    """Meta's rotary scaling since Llama 3.1; only the factor ever varied."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _scaling_factor(params: Mapping[str, Any], tied: bool) -> float:
    """params.json does not tell the factor: Meta used 8 in Llama 3.1, and 32 in 3.2, whose heads are tied."""
    return float(params.get("rope_scaling_factor") or (32.0 if tied else 8.0))


def _context(params: Mapping[str, Any], theta: float, scaled: bool) -> int:
    if scaled:
        return 131072  # Llama 3.1 and 3.2
    if theta == 1000000:
        return 16384  # CodeLlama
    if theta >= 500000:
        return 8192  # Llama 3
    return 2048 if float(params.get("norm_eps", 1e-5)) < 1e-5 else 4096  # LLaMA 1, Llama 2


_Size = Annotated[int, Field(ge=1, le=files.MAX_COUNT)]


class _Required(TypedDict):
    dim: _Size
    n_layers: Annotated[int, Field(ge=1, le=files.MAX_LAYERS)]
    n_heads: _Size


class Params(_Required, total=False):
    """What is read of a params.json."""

    n_kv_heads: _Size | None
    norm_eps: Annotated[float, Field(gt=0, lt=1)]
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    use_scaled_rope: bool
    rope_scaling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    max_seq_len: _Size | None


def _read_params(path: Path) -> dict[str, Any]:
    try:
        params: dict[str, Any] = files.read_json(path)
        params = params.get("model", params)  # later releases nest it
        files.check(params, str(path), Params)
    except FileError as error:
        found = error.found or error.problem
        raise FileError(
            f"{path} is not Meta's params.json", found=found, expected=f"whole numbers for {', '.join(_REQUIRED)}"
        ) from error
    return params


def _open_shards(path: Path) -> list[TensorReader]:
    files = shard_files(path)
    numbered = [(file, match[1]) for file in files if (match := re.search(r"\.(\d+)\.\w+$", file.name))]
    missing = sorted(set(range(len(numbered))) - {int(number) for _, number in numbered})
    if missing or (numbered and len(numbered) != len(files)):
        raise FileError(
            f"{path} lacks shards",
            found=", ".join(file.name for file in files),
            expected=", ".join(f"consolidated.{number:02d}" for number in missing) or "one numbering",
        )
    return [open_tensors(file) for file in files]


def _check_replicas(name: str, parts: Sequence[torch.Tensor]) -> None:
    if any(not torch.equal(parts[0], part) for part in parts[1:]):
        raise WeightsError(
            f"{name} differs between shards", expected="equal copies; the shards are of different models"
        )


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
