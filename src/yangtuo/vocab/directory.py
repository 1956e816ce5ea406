"""Tokenizer directories in Hugging Face's layout: read whole into one value, and written whole from one.

This is the only module that knows the files of such a directory. It knows nothing of models or artifacts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from yangtuo.errors import FileError
from yangtuo.files import LARGE, check, parse_json, read_bytes, read_json, read_text
from yangtuo.vocab import ice_text
from yangtuo.vocab.fast_tokenizer import adds_token, fast_to_sentencepiece, parse_fast, sentencepiece_to_fast
from yangtuo.vocab.sentencepiece_model import CONTROL, USER_DEFINED, extended_proto, is_bpe, parse_model

MODEL_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
_SPECIAL_FILE = "special_tokens_map.json"
_ADDED_FILE = "added_tokens.json"
_OLD_TEMPLATE_FILE = "chat_template.json"
_TEMPLATES = "additional_chat_templates"
_COMPANIONS = (_SPECIAL_FILE, _ADDED_FILE, "vocab.json", "merges.txt")
TOKENIZER_FILES = (
    *(MODEL_FILE, ice_text.MODEL_FILE, FAST_FILE, CONFIG_FILE, TEMPLATE_FILE, _OLD_TEMPLATE_FILE),
    *_COMPANIONS,
)
"""All files that belong to a tokenizer, and are replaced together."""

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# AutoTokenizer rebuilds the pipeline of its Llama class and drops ours; this class takes tokenizer.json as it is.
_VERBATIM_CLASS = "PreTrainedTokenizerFast"
# Keys that repeat what tokenizer.json says, select another pipeline, or run code.
_STALE_SETTINGS = {"added_tokens_decoder", "auto_map", "legacy", "use_fast", "backend", "sp_model_kwargs"}


@dataclass(frozen=True)
class AddedToken:
    """A token that is found whole, apart from the vocabulary's pieces; `special` where it is a control token."""

    text: str
    special: bool


class _Entry(TypedDict):
    content: str
    special: NotRequired[bool]


class _Text(TypedDict):
    content: str


_Special = str | _Text | None


class Settings(TypedDict, total=False):
    """What is read of tokenizer_config.json and special_tokens_map.json."""

    bos_token: _Special
    eos_token: _Special
    unk_token: _Special
    pad_token: _Special
    add_bos_token: bool | None
    add_eos_token: bool | None
    tokenizer_class: str | None


class _NamedTemplate(TypedDict):
    name: str
    template: str


@dataclass(frozen=True)
class TokenizerDirectory:
    """All that the files of a tokenizer say. Either `model` or `fast` is there, or both, with the same ids."""

    name: str
    """Where it was read, for messages."""
    model: bytes | None = field(default=None, repr=False)
    """Content of tokenizer.model (ChatGLM's ice_text.model), a SentencePiece model."""
    fast: str | None = field(default=None, repr=False)
    """Content of tokenizer.json."""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Content of tokenizer_config.json, without chat templates."""
    companions: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Files that repeat what others say, kept for readers that look there."""
    templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Chat templates by name; `default` is the one that is used."""
    generation: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Content of generation_config.json, which says where replies end."""
    image_tokens: int | None = None
    """For ChatGLM's tokenizer, the ids before its first piece; None for every other."""

    @property
    def template(self) -> str | None:
        """The chat template, a Jinja text."""
        return self.templates.get("default")

    @cached_property
    def proto(self) -> Any | None:
        """The `ModelProto` of tokenizer.model."""
        return parse_model(self.model, f"{self.name}/{MODEL_FILE}") if self.model is not None else None

    @cached_property
    def content(self) -> dict[str, Any] | None:
        """The object that tokenizer.json holds."""
        return parse_fast(self.fast, f"{self.name}/{FAST_FILE}") if self.fast is not None else None

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Id by text of the pieces of the SentencePiece model, or of tokenizer.json's model; without added tokens."""
        if self.proto is not None:
            return {piece.piece: index for index, piece in enumerate(self.proto.pieces, self.image_tokens or 0)}
        assert self.content is not None
        vocabulary = self.content["model"]["vocab"]
        return dict(vocabulary) if isinstance(vocabulary, dict) else {text: i for i, (text, _) in enumerate(vocabulary)}

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Added tokens by id, from every file that names some; raises `FileError` where they contradict each other."""
        sources: list[tuple[str, int, AddedToken]] = []
        for text, index in self._companion(_ADDED_FILE, dict[str, int]).items():
            sources.append((_ADDED_FILE, int(index), AddedToken(text, True)))
        decoder = check(
            self.settings.get("added_tokens_decoder") or {}, f"{self.name}/{CONFIG_FILE}", dict[str, _Entry]
        )
        for key, entry in decoder.items():
            if not key.isdecimal():
                raise FileError(f"{self.name}/{CONFIG_FILE} does not hold what it should", found=f"the id {key!r}")
            sources.append((CONFIG_FILE, int(key), AddedToken(entry["content"], entry.get("special", True))))
        for entry in (self.content or {}).get("added_tokens", []):
            token = AddedToken(entry["content"], bool(entry.get("special", True)))
            sources.append((FAST_FILE, entry["id"], token))
        tokens: dict[int, tuple[str, AddedToken]] = {}
        for file, index, token in sources:
            if index in tokens and tokens[index][1].text != token.text:
                raise FileError(
                    f"{self.name}: {file} and {tokens[index][0]} name different tokens",
                    found=f"id {index} is {token.text!r} in one and {tokens[index][1].text!r} in the other",
                    expected="the files of one tokenizer",
                )
            tokens[index] = (file, token)
        return {index: tokens[index][1] for index in sorted(tokens)}

    @cached_property
    def pieces(self) -> list[str]:
        """The text of every id; ids that no file names (Llama 3 has none, some models have) still are ids."""
        named = {index: text for text, index in self.vocabulary.items()}
        named |= {index: token.text for index, token in self.added.items()}
        named |= {index: f"<image_{index}>" for index in range(self.image_tokens or 0)}
        return [named.get(index, f"<unnamed {index}>") for index in range(max(named, default=-1) + 1)]

    def special_text(self, name: str) -> str | None:
        """The text of `name` ("bos_token" …) where the settings name one that the tokenizer has, else its own.

        A setting of null says that there is none; an empty text, as LLaMA's first conversions had, says nothing.
        """
        if self.image_tokens is not None and name in ("bos_token", "eos_token"):
            return ice_text.BEGIN if name == "bos_token" else ice_text.END
        known = self.vocabulary.keys() | {token.text for token in self.added.values()}
        for settings in (self.settings, self._companion(_SPECIAL_FILE, dict[str, Any])):
            if name not in settings:
                continue
            value = settings[name]
            text = value.get("content") if isinstance(value, dict) else value
            if text is None or text in known:
                return text
        if self.proto is not None:
            index = int(getattr(self.proto.trainer_spec, name.replace("_token", "_id")))
            return self.proto.pieces[index].piece if 0 <= index < len(self.proto.pieces) else None
        usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}.get(name)
        return usual if usual in known else None

    def special_id(self, name: str) -> int | None:
        """The id of `special_text`."""
        text = self.special_text(name)
        if text is None:
            return None
        ids = self.vocabulary | {token.text: index for index, token in self.added.items()}
        return ids.get(text)

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS: as tokenizer_config.json says, else tokenizer.json, else as Llama's class."""
        return self._adds("bos_token", default=True)

    @property
    def adds_eos(self) -> bool:
        """Whether a text ends with EOS; no base that is continued does."""
        return self._adds("eos_token", default=False)

    def _adds(self, name: str, *, default: bool) -> bool:
        text = self.special_text(name)
        if text is None:
            return False
        said = self.settings.get(f"add_{name}")
        if isinstance(said, bool):
            return said
        return adds_token(self.content, text) if self.content is not None else default

    def _companion(self, file: str, schema: type[dict[str, Any]]) -> dict[str, Any]:
        data = self.companions.get(file)
        return parse_json(data, f"{self.name}/{file}", schema) if data else {}

    def whole_proto(self) -> Any:
        """The SentencePiece model with the added tokens beyond its pieces as pieces; one that says what `fast` says.

        Raises `VocabularyError` where there is none that cuts text as tokenizer.json does.
        """
        if self.proto is None:
            assert self.content is not None
            return fast_to_sentencepiece(self.content, self.name)
        beyond = {index: token for index, token in self.added.items() if index >= len(self.proto.pieces)}
        return extended_proto(
            self.proto, [(beyond[i].text, CONTROL if beyond[i].special else USER_DEFINED) for i in sorted(beyond)]
        )

    def write(self, directory: Path) -> None:
        """Writes the whole set into `directory`, and removes whatever tokenizer files stand there.

        The template stands alike in chat_template.jinja, where transformers looks, and in tokenizer_config.json, where
        llama.cpp's converter and older servers do.
        """
        directory.mkdir(parents=True, exist_ok=True)
        remove_tokenizer(directory)
        bare = self.fast is None and self.image_tokens is None and is_bpe(self.proto)
        whole = self.with_fast() if bare else self
        if whole.model is not None:
            (directory / (MODEL_FILE if self.image_tokens is None else ice_text.MODEL_FILE)).write_bytes(whole.model)
        if whole.fast is not None:
            (directory / FAST_FILE).write_text(whole.fast, encoding="utf-8")
        for file, data in whole.companions.items():
            (directory / file).write_bytes(data)
        settings = dict(whole.settings)
        if len(whole.templates) == 1 and whole.template is not None:
            settings["chat_template"] = whole.template
        elif whole.templates:
            named = [{"name": name, "template": text} for name, text in whole.templates.items()]
            settings["chat_template"] = named
        _write_json(directory / CONFIG_FILE, settings)
        if whole.template is not None:
            (directory / TEMPLATE_FILE).write_text(whole.template, encoding="utf-8")
        for name, text in whole.templates.items():
            if name != "default":
                (directory / _TEMPLATES).mkdir(exist_ok=True)
                (directory / _TEMPLATES / f"{name}.jinja").write_text(text, encoding="utf-8")

    def with_fast(self, controls: Sequence[str] = ()) -> TokenizerDirectory:
        """With a tokenizer.json that gives the ids of tokenizer.model, and settings that make transformers take it.

        `controls` are pieces to list as special tokens though the model has them as normal ones.
        """
        proto = self.whole_proto()
        special = {name: self.special_text(name) for name in _SPECIAL}
        ends = {f"add_{name}_token": adds for name, adds in (("bos", self.adds_bos), ("eos", self.adds_eos))}
        kept = {name: value for name, value in self.settings.items() if name not in {*_STALE_SETTINGS, *_SPECIAL}}
        settings = {
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000_000,
            **kept,
            **ends,
            **{name: text for name, text in special.items() if text is not None or self.settings.get(name, 0) is None},
            "tokenizer_class": _VERBATIM_CLASS,
        }
        named = [*controls, *(token.text for token in self.added.values() if token.special)]
        fast = sentencepiece_to_fast(proto, named, special["bos_token"] if self.adds_bos else None)
        return replace(self, fast=fast, model=proto.SerializeToString(), settings=settings, companions={})

    def with_content(self, content: Mapping[str, Any]) -> TokenizerDirectory:
        """With `content` as the tokenizer.json that transformers takes as it is, and nothing beside it."""
        special = {name: self.special_text(name) for name in _SPECIAL} if self.fast is not None else {}
        kept = {name: value for name, value in self.settings.items() if name not in _STALE_SETTINGS}
        settings = {**kept, **{name: text for name, text in special.items() if text is not None}}
        return replace(
            self,
            model=None,
            fast=json.dumps(content, ensure_ascii=False, indent=1) + "\n",
            settings={**settings, "tokenizer_class": _VERBATIM_CLASS},
            companions={},
        )

    def with_defaults_of(self, base: TokenizerDirectory) -> TokenizerDirectory:
        """This tokenizer on a model whose own is `base`: base's files where both have the same pieces, its template
        and stop ids where this one brings none."""
        merged = replace(
            self, templates=self.templates or base.templates, generation={**base.generation, **self.generation}
        )
        if self.pieces != base.pieces or (self.model is not None and self.fast is not None):
            return merged
        special = {name: self.settings[name] for name in _SPECIAL if name in self.settings}
        companions = {name: data for name, data in base.companions.items() if name != _SPECIAL_FILE or not special}
        return replace(
            merged, model=base.model, fast=base.fast, settings={**base.settings, **special}, companions=companions
        )


def read_directory(path: str | Path) -> TokenizerDirectory:
    """Reads the tokenizer at `path`: a directory, a tokenizer.model or a tokenizer.json.

    Raises `FileError` where none is there, a file is malformed, or two files give different ids.
    """
    path = Path(path)
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise FileError(f"{path} does not exist", expected="a tokenizer directory, tokenizer.model or tokenizer.json")
    is_ice = is_ice_text(path)
    model, fast = path / (ice_text.MODEL_FILE if is_ice else MODEL_FILE), path / FAST_FILE
    settings = _read_json(path / CONFIG_FILE)
    for file, values in ((CONFIG_FILE, settings), (_SPECIAL_FILE, _read_json(path / _SPECIAL_FILE))):
        check(values, str(path / file), Settings)
    settings.pop("chat_template", None)
    directory = TokenizerDirectory(
        name=str(path),
        model=read_bytes(model, LARGE) if is_sentencepiece(model) or (model.is_file() and not fast.is_file()) else None,
        fast=read_text(fast, LARGE) if fast.is_file() and not is_ice else None,
        settings=settings,
        companions={name: read_bytes(path / name, LARGE) for name in _COMPANIONS if (path / name).is_file()},
        templates=read_templates(path),
        generation=_read_json(path / GENERATION_FILE),
        image_tokens=ice_text.num_image_tokens(path) if is_ice else None,
    )
    if directory.model is None and directory.fast is None:
        raise FileError(
            f"{path} holds no tokenizer",
            found=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty directory",
            expected=f"{MODEL_FILE} or {FAST_FILE}",
        )
    _check_same_ids(directory)
    return directory


def has_tokenizer(path: Path) -> bool:
    """Whether a directory holds a tokenizer."""
    return any((path / name).is_file() for name in (MODEL_FILE, FAST_FILE, ice_text.MODEL_FILE))


def is_ice_text(path: Path) -> bool:
    """Whether the tokenizer of a directory, or the file, is ChatGLM-6B's."""
    return ice_text.find(path) is not None


def copy_tokenizer(source: str | Path | TokenizerDirectory, destination: str | Path) -> None:
    """Writes a tokenizer into the directory `destination`, and where its replies end, as a whole set."""
    tokenizer = source if isinstance(source, TokenizerDirectory) else read_directory(source)
    tokenizer.write(Path(destination))
    if tokenizer.generation:
        _write_json(Path(destination) / GENERATION_FILE, tokenizer.generation)


def remove_tokenizer(directory: Path) -> None:
    """Removes all tokenizer files of a directory."""
    for name in TOKENIZER_FILES:
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / _TEMPLATES, ignore_errors=True)


def is_sentencepiece(file: Path) -> bool:
    """Whether `file` holds a SentencePiece model, and not, say, tiktoken's base64 lines under the same name."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"  # field 1, length-delimited: the first piece


def write_sentencepiece(
    directory: Path, model: bytes, *, settings: Mapping[str, Any] | None = None, controls: Sequence[str] = ()
) -> None:
    """Writes the directory of a bare SentencePiece BPE model; `settings` are keys of tokenizer_config.json.

    `controls` are pieces that other tools shall treat as control tokens though the model has them as normal ones.
    """
    TokenizerDirectory(str(directory), model=model, settings=settings or {}).with_fast(controls).write(directory)


def write_byte_level(directory: Path, content: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes the directory of a bare tokenizer.json; `settings` are keys of tokenizer_config.json."""
    TokenizerDirectory(str(directory), settings=settings).with_content(content).write(directory)


def _read_file(path: Path) -> TokenizerDirectory:
    """A bare file, checked here, where its own name is known."""
    if path.suffix == ".json":
        text = read_text(path, LARGE)
        parse_fast(text, str(path))
        return TokenizerDirectory(str(path.parent), fast=text)
    data = read_bytes(path, LARGE)
    parse_model(data, str(path))
    images = ice_text.num_image_tokens(path.parent) if is_ice_text(path) else None
    return TokenizerDirectory(str(path.parent), model=data, image_tokens=images)


def _check_same_ids(directory: TokenizerDirectory) -> None:
    """tokenizer.model and tokenizer.json must be one tokenizer: transformers reads one, other programs the other."""
    if directory.proto is None or directory.content is None:
        return
    vocabulary = directory.content["model"]["vocab"]
    fast = dict(vocabulary) if isinstance(vocabulary, dict) else {text: i for i, (text, _) in enumerate(vocabulary)}
    fast |= {token["content"]: token["id"] for token in directory.content["added_tokens"]}
    texts = {index: text for text, index in fast.items()}
    differing = [i for i, piece in enumerate(directory.proto.pieces) if texts.get(i) != piece.piece]
    beyond = {token["content"] for token in directory.content["added_tokens"]}
    unknown = [text for text, index in fast.items() if index >= len(directory.proto.pieces) and text not in beyond]
    if differing or unknown:
        raise FileError(
            f"{directory.name}: {MODEL_FILE} and {FAST_FILE} are two different tokenizers",
            found=f"{len(directory.proto.pieces):,} pieces in the one, {len(fast):,} ids in the other; "
            f"{len(differing) + len(unknown):,} differ",
            expected="one tokenizer; the file left over from another must go",
            run=f"mv {directory.name}/{FAST_FILE} somewhere else, if {MODEL_FILE} is the right one",
        )


def read_templates(path: Path) -> dict[str, str]:
    """Chat templates of a directory by name; those in files of their own come first, as in transformers."""
    templates: dict[str, str] = {}
    setting = _read_json(path / CONFIG_FILE).get("chat_template")
    if isinstance(setting, str):
        templates["default"] = setting
    elif isinstance(setting, list):
        entries = check(setting, f"{path / CONFIG_FILE}: chat_template", list[_NamedTemplate])
        templates |= {entry["name"]: entry["template"] for entry in entries}
    elif isinstance(setting, dict):
        templates |= {str(name): str(text) for name, text in setting.items()}
    old = _read_json(path / _OLD_TEMPLATE_FILE).get("chat_template")
    if isinstance(old, str):
        templates["default"] = old
    if (path / TEMPLATE_FILE).is_file():
        templates["default"] = read_text(path / TEMPLATE_FILE)
    for file in sorted((path / _TEMPLATES).glob("*.jinja")):
        templates[file.stem] = read_text(file)
    return templates


def _read_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
