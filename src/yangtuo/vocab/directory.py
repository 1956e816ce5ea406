"""Tokenizer directories in Hugging Face's layout: which files they hold, writing them, copying them.

Knows the files' names and what AutoTokenizer reads from them; knows nothing of models or artifacts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yangtuo.vocab import ice_text
from yangtuo.vocab.sentencepiece_model import fast_tokenizer_json, is_bpe, parse_model

MODEL_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (
    MODEL_FILE,
    FAST_FILE,
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""All files that belong to a tokenizer or say when its model stops."""

# AutoTokenizer rebuilds the pipeline of its Llama class and drops ours; this class takes tokenizer.json as it is.
_VERBATIM_CLASS = "PreTrainedTokenizerFast"
# Keys that repeat what tokenizer.json says, or select another pipeline.
_STALE_SETTINGS = {"added_tokens_decoder", "auto_map", "legacy", "use_fast", "backend", "sp_model_kwargs"}


def write_sentencepiece(
    directory: Path,
    proto_bytes: bytes,
    *,
    settings: Mapping[str, Any] | None = None,
    controls: Sequence[str] = (),
) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json, alike in ids, into `directory`.

    `settings` are further keys of tokenizer_config.json, such as another eos_token or model_max_length; `controls`
    are pieces that other tools shall treat as control tokens though the model has them as normal ones.
    """
    proto = parse_model(proto_bytes, MODEL_FILE)
    assert is_bpe(proto), "only SentencePiece BPE models have a tokenizer.json with the same ids"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL_FILE).write_bytes(proto_bytes)
    (directory / FAST_FILE).write_text(fast_tokenizer_json(proto, controls), encoding="utf-8")
    spec = proto.trainer_spec
    names = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    special = {name: proto.pieces[index].piece for name, index in names.items() if index >= 0}
    kept = {name: value for name, value in (settings or {}).items() if name not in _STALE_SETTINGS}
    config = {
        "add_bos_token": spec.bos_id >= 0,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000_000,
        **special,
        **kept,
        "tokenizer_class": _VERBATIM_CLASS,
    }
    _write_json(directory / CONFIG_FILE, config)


def write_byte_level(directory: Path, fast_json: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes a byte-level BPE tokenizer: the content of its tokenizer.json and of its tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in settings.items() if name not in _STALE_SETTINGS}
    (directory / FAST_FILE).write_text(json.dumps(fast_json, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _write_json(directory / CONFIG_FILE, {**settings, "tokenizer_class": _VERBATIM_CLASS})


def copy_tokenizer(source: str | Path, destination: str | Path) -> list[str]:
    """Copies all tokenizer files of the directory `source`, and returns their names; other files stay behind.

    An existing file of the same name in `destination` is replaced. A bare tokenizer.model gets its companions written.
    """
    source, destination = Path(source), Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    if (ice := ice_text.find(source)) is not None:
        return ice_text.copy(ice.parent, destination)
    if source.is_file() and source.suffix == ".model":
        write_sentencepiece(destination, source.read_bytes())
        return [MODEL_FILE, FAST_FILE, CONFIG_FILE]
    if source.is_file():
        shutil.copyfile(source, destination / FAST_FILE)
        return [FAST_FILE]
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, destination / name)
    return names


def read_settings(directory: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json in `directory`, empty where there is none."""
    file = directory / CONFIG_FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
