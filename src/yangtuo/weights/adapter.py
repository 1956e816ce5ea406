"""Adapters as PEFT writes them, read as updates to named tensors: what is replaced, and what low-rank product is added.

Reads a PEFT directory (`adapter_config.json`, `adapter_model.safetensors` or `.bin`, opened weights-only) or a zip of
one. It refuses to know the base: whether an update fits is the business of `yangtuo.weights.merging`.
"""

from __future__ import annotations

import math
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.errors import FileError, OutputError, UserError, WeightsError, raise_all
from yangtuo.vocab.directory import TOKENIZER_FILES, has_tokenizer
from yangtuo.weights.checkpoint import Tensors, all_finite, read_json
from yangtuo.weights.reader import TensorReader, open_tensors

CONFIG_FILE = "adapter_config.json"
_LONGEST_PATTERN = 2000  # characters
_MOST_EXPANSION = 100  # of a zip beyond `files.LARGE` bytes: weights hardly get smaller
_MOST_REPETITIONS = 4  # in a pattern for names of some sixty characters, whose power they are
_Rank = Annotated[int, Field(ge=1, le=1 << 20)]
_Row = Annotated[int, Field(ge=0, le=files.MAX_COUNT)]


@dataclass(frozen=True)
class Replace:
    """A trained tensor stands in for the base's; `is_base` where it only repeats the (resized) base under LoRA."""

    key: str
    is_base: bool = False


@dataclass(frozen=True)
class ReplaceRows:
    """Trained rows stand in for some rows of the base's."""

    key: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class LowRank:
    """B @ A times the scaling is added; with a magnitude, every output is then rescaled to it (DoRA)."""

    a: str
    b: str
    scaling: float
    transposed: bool
    """The stored weight is (in, out), as in embeddings and GPT-2's layers."""
    magnitude: str | None = None


@dataclass(frozen=True)
class Add:
    """A vector times the scaling is added: LoRA's own bias."""

    key: str
    scaling: float


@dataclass(frozen=True)
class Difference:
    """`scale` times what a tuned model's tensor is beyond its base's is added: a task vector.

    In embedding and head it is that of the first `num_rows` rows alone; `whole` rows (of the result, of the tuned
    model) have no base, and are taken as they are.
    """

    tuned: str
    base: str
    scale: float
    num_rows: int | None = None
    whole: tuple[tuple[int, int], ...] = ()


Update = Replace | ReplaceRows | LowRank | Add | Difference


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, and what they do to which tensor of the base."""

    name: str
    path: Path
    tensors: Tensors
    updates: dict[str, list[Update]]
    ties_embeddings: bool
    """Whether what is trained of the embedding holds for a tied head too."""

    @property
    def brings_tokenizer(self) -> bool:
        """Whether the adapter has a tokenizer of its own."""
        return has_tokenizer(self.path)


# Variants that compute what no single weight can hold, or whose initialisation has changed the base itself.
_UNMERGEABLE = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_BASE_KEEPING_INITS = (True, False, "gaussian", "eva", "orthogonal")

_NAME = r"(?:\.(?!weight$|bias$)\w+)?"  # the adapter's name inside PEFT, which old versions wrote out
_KEYS = {
    role: re.compile(rf"(?:base_model\.model\.)?(?P<module>.+?)\.{pattern}")
    for role, pattern in {
        "skip": r"(?:original_module\..+|rotary_emb\.inv_freq|attn\.(?:masked_)?bias)",
        "lora_A": rf"lora_A{_NAME}\.weight",
        "lora_B": rf"lora_B{_NAME}\.weight",
        "lora_B_bias": rf"lora_B{_NAME}\.bias",
        "embedding_A": rf"lora_embedding_A{_NAME}",
        "embedding_B": rf"lora_embedding_B{_NAME}",
        "magnitude": rf"lora_magnitude_vector{_NAME}(?:\.weight)?",
        "rows": rf"(?:token_adapter\.)?trainable_tokens_delta{_NAME}",
        "base": r"base_layer\.(?P<kind>weight|bias)",
        "saved": rf"(?:modules_to_save{_NAME}\.)?(?P<kind>weight|bias)",
    }.items()
}


def open_adapter(path: Path, name: str, scratch: Path) -> Adapter:
    """Opens a PEFT directory or a zip of one, which is unpacked below `scratch`.

    Raises `FileError` where files are missing, `WeightsError` for kinds of adapters that cannot be merged, with all
    problems at once.
    """
    path = unpacked(path, scratch)
    if not (path / CONFIG_FILE).is_file():
        raise FileError(
            f"{name} is no adapter",
            found=", ".join(sorted(file.name for file in path.iterdir())[:8]) if path.is_dir() else "nothing",
            expected=f"a directory with {CONFIG_FILE} and adapter_model.safetensors (or .bin), or a zip of one",
        )
    config = read_config(path / CONFIG_FILE)
    raise_all(_unmergeable(config, name))
    tensors = open_tensors(path)
    updates = _read_updates(tensors, config, name)
    return Adapter(name, path, tensors, updates, bool(config.get("ensure_weight_tying")))


class AdapterConfig(TypedDict, total=False):
    """What is read of an adapter_config.json, as PEFT writes it."""

    peft_type: str
    r: _Rank
    lora_alpha: float
    rank_pattern: dict[str, _Rank] | None
    alpha_pattern: dict[str, float] | None
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    modules_to_save: list[str] | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | str | None
    trainable_token_indices: list[_Row] | dict[str, list[_Row]] | None
    base_model_name_or_path: str | None
    use_rslora: bool | None
    use_dora: bool | None
    fan_in_fan_out: bool | None


def read_config(path: Path) -> dict[str, Any]:
    """The content of an adapter_config.json; raises `FileError` for other types, and for expressions that are none.

    Module names are matched against them here and in PEFT, by Python's matcher, which some keep busy for ever: such as
    repeat what repeats are refused. Names without repetition are all that PEFT itself ever writes.
    """
    config = read_json(path)
    files.check(config, str(path), AdapterConfig)
    patterns = [*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())]
    for option in ("target_modules", "exclude_modules", "layers_pattern", "trainable_token_indices"):
        value = config.get(option)
        patterns += [value] if isinstance(value, str) else [item for item in value or () if isinstance(item, str)]
    for pattern in patterns:
        try:
            parsed = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise FileError(f"{path}: {pattern[:60]!r} is no regular expression", found=str(error)) from error
        if _repeats_repeats(parsed.pattern):
            raise FileError(
                f"{path}: {pattern[:60]!r} may take for ever to match",
                expected="few repetitions, none of them repeated",
            )
    return config


def _repeats_repeats(pattern: str) -> bool:
    """Whether a group that repeats, or branches, is repeated: what makes a matcher try exponentially many ways."""
    variable = re.compile(r"[*+?}|]")
    groups, spans = [], []
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)
    for index, character in enumerate(plain):
        if character == "(":
            groups.append(index)
        elif character == ")" and groups:
            spans.append((groups.pop(), index))
    repeated = [
        plain[begin + 1 : end].removeprefix("?:") for begin, end in spans if plain[end + 1 : end + 2] in set("*+{")
    ]
    too_many = len(pattern) > _LONGEST_PATTERN or len(re.findall(r"[*+]|\{\d*,", plain)) > _MOST_REPETITIONS
    return too_many or any(variable.search(inside) for inside in repeated)


def non_finite(adapter: Adapter) -> list[UserError]:
    """One error a tensor that holds NaN or infinity; reads the whole adapter."""
    broken = [key for key in adapter.tensors.names() if not all_finite(adapter.tensors.get(key))]
    return [
        WeightsError(
            f"{adapter.name}: {key} holds NaN or infinity",
            expected="finite numbers; the training run diverged, or the file is damaged",
        )
        for key in broken
    ]


def _unmergeable(config: Mapping[str, Any], name: str) -> list[UserError]:
    errors: list[UserError] = []
    if config.get("peft_type") != "LORA":
        errors.append(WeightsError(f"{name} cannot be merged", found=str(config.get("peft_type")), expected="LORA"))
    for option in _UNMERGEABLE:
        if config.get(option):
            errors.append(WeightsError(f"{name} cannot be merged: {option} is set", expected="an adapter without it"))
    init = config.get("init_lora_weights", True)
    if init not in _BASE_KEEPING_INITS:
        errors.append(
            WeightsError(
                f"{name} belongs to a base that its initialisation has changed",
                found=f"init_lora_weights: {init}",
                expected="plain LoRA, as save_pretrained(path_initial_model_for_weight_conversion=…) of PEFT writes",
            )
        )
    return errors


def _read_updates(tensors: TensorReader, config: Mapping[str, Any], name: str) -> dict[str, list[Update]]:
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for key in tensors.names():
        matches = [(role, match) for role, pattern in _KEYS.items() if (match := pattern.fullmatch(key))]
        if not matches:
            unknown.append(key)
        elif matches[0][0] != "skip":
            role, match = matches[0]
            form = match.groupdict().get("kind")
            parts.setdefault(match["module"], {})[f"{role}_{form}" if form else role] = key
    errors: list[UserError] = []
    empty = [key for key in tensors.names() if 0 in tensors.shape(key)]
    if empty:
        errors.append(
            WeightsError(
                f"{name} holds {len(empty)} empty tensors",
                found=", ".join(empty[:4]),
                expected="whole tensors; DeepSpeed ZeRO-3 leaves such where they were not gathered before saving",
            )
        )
    whole = [key for key in tensors.names() if key not in unknown and not tensors.dtype(key).is_floating_point]
    if whole:
        errors.append(
            WeightsError(
                f"{name} holds tensors of whole numbers",
                found=", ".join(f"{key} as {tensors.dtype(key)}" for key in whole[:4]),
                expected="float32, float16 or bfloat16",
            )
        )
    if unknown:
        errors.append(WeightsError(f"{name} holds tensors of no known kind", found=", ".join(unknown[:6])))
    raise_all(errors)
    updates: dict[str, list[Update]] = {}
    for module, keys in parts.items():
        for kind in ("weight", "bias"):
            for role in ("base", "saved"):
                if trained := keys.get(f"{role}_{kind}"):
                    updates.setdefault(f"{module}.{kind}", []).append(Replace(trained, is_base=role == "base"))
        if "rows" in keys:
            updates.setdefault(f"{module}.weight", []).append(ReplaceRows(keys["rows"], _rows(module, config)))
        errors.extend(_add_low_rank(updates, module, keys, tensors, config, name))
    if not parts:
        errors.append(WeightsError(f"{name} holds no trained tensors"))
    raise_all(errors)
    return updates


def _add_low_rank(
    updates: dict[str, list[Update]],
    module: str,
    keys: Mapping[str, str],
    tensors: TensorReader,
    config: Mapping[str, Any],
    name: str,
) -> list[UserError]:
    embedding = "embedding_A" in keys or "embedding_B" in keys
    a, b = (keys.get("embedding_A"), keys.get("embedding_B")) if embedding else (keys.get("lora_A"), keys.get("lora_B"))
    magnitude = keys.get("magnitude")
    if a is None and b is None and magnitude is None and "lora_B_bias" not in keys:
        return []
    if a is None or b is None:
        return [WeightsError(f"{name}: {module} has half a LoRA pair", found=", ".join(keys.values()))]
    rank = tensors.shape(a)[0]
    expected = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", rank)))
    problems = []
    if tensors.shape(b)[1] != rank or expected != rank:
        problems.append(f"{module} has rank {rank} in A and {tensors.shape(b)[1]} in B, {expected} in {CONFIG_FILE}")
    if bool(config.get("use_dora")) != (magnitude is not None):
        problems.append(f"{module} has {'a' if magnitude else 'no'} magnitude, use_dora is {config.get('use_dora')}")
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    updates.setdefault(f"{module}.weight", []).append(LowRank(a, b, scaling, embedding, magnitude))
    if key := keys.get("lora_B_bias"):
        updates.setdefault(f"{module}.bias", []).append(Add(key, scaling))
    return [WeightsError(f"{name}: {problem}") for problem in problems]


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: a pattern names the end of a module's path, as a regular expression; the first match counts."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _rows(module: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    indices: Sequence[int] | Mapping[str, Sequence[int]] = config.get("trainable_token_indices") or ()
    if isinstance(indices, Mapping):
        indices = next((rows for name, rows in indices.items() if re.match(rf"(.*\.)?{name}$", module)), ())
    return tuple(int(row) for row in indices)


def unpacked(path: Path, scratch: Path) -> Path:
    """The directory that holds an adapter's config; a zip is unpacked below `scratch`."""
    if not path.is_file():
        return path
    target = scratch / path.stem
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            climbing = [member.filename for member in members if _climbs(member)]
            if climbing:
                raise FileError(
                    f"{path} would write outside its directory", found=climbing[0], expected="plain relative names"
                )
            configs = [member for member in members if PurePosixPath(member.filename).name == CONFIG_FILE]
            if len(configs) != 1:
                raise FileError(f"{path} holds {len(configs)} adapters", expected=f"exactly one {CONFIG_FILE}")
            home = PurePosixPath(configs[0].filename).parent
            members = [member for member in members if _belongs(PurePosixPath(member.filename), home)]
            size, packed = (sum(getattr(m, key) for m in members) for key in ("file_size", "compress_size"))
            target.mkdir(parents=True, exist_ok=True)
            if size > _MOST_EXPANSION * packed + files.LARGE:
                raise FileError(
                    f"{path} would expand without bound", found=f"{packed:,} bytes into {size:,}", expected="an adapter"
                )
            if size > shutil.disk_usage(target).free:
                raise OutputError(f"no room to unpack {path}", expected=f"{size / 1e9:.2f} GB free", run="df -h")
            for member in members:
                with archive.open(member) as source, (target / PurePosixPath(member.filename).name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise FileError(
            f"{path} is no zip that can be read", found=str(error), expected="a zip of an adapter"
        ) from error
    return target


def _belongs(name: PurePosixPath, home: PurePosixPath) -> bool:
    """Whether a member of a zip is part of the adapter whose config lies in `home`."""
    own = re.fullmatch(r"adapter_(config\.json|model.*\.(safetensors|bin))", name.name) or name.name in TOKENIZER_FILES
    return name.parent == home and bool(own)


def _climbs(member: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    return is_link or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]
