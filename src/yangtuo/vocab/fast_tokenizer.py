"""tokenizer.json, the format of Hugging Face's tokenizers: read, written, turned into a SentencePiece model and back.

What is written is built from the library's own objects. This module knows no directory.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import Field
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.errors import FileError, VocabularyError
from yangtuo.vocab.engines import FastEngine, SentencePieceEngine
from yangtuo.vocab.sentencepiece_model import BLANK, BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, ranked_merges

_PROBE_LINES = 400


_Id = Annotated[int, Field(ge=0, le=files.MAX_COUNT)]


class _Added(TypedDict):
    id: _Id
    content: str
    special: bool


class _Model(TypedDict):
    type: str
    vocab: dict[str, _Id] | list[Annotated[list[str | float], Field(min_length=2, max_length=2)]]
    unk_token: NotRequired[str | None]
    unk_id: NotRequired[_Id | None]


class FastFile(TypedDict):
    """What is read of a tokenizer.json beside what the library reads."""

    model: _Model
    added_tokens: list[_Added]


def parse_fast(text: str, name: str) -> dict[str, Any]:
    """The object in the text of a tokenizer.json; raises `FileError` where it is none."""
    try:
        content = files.parse_json(text, name)
        content.setdefault("added_tokens", [])
        files.check(content, name, FastFile)
    except FileError as error:
        raise FileError(
            f"{name} is not a tokenizer.json",
            found=error.found or error.problem,
            expected="a file that Hugging Face tokenizers wrote, with model and vocab",
        ) from error
    return content


def fast_text(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Iterable[tuple[str, bool]],
    *,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    decoder: Any,
    first: str | None,
    **model: Any,
) -> str:
    """The text of a BPE tokenizer.json.

    `added` are added tokens, each with whether it is special: those in the vocabulary keep their ids, others get the
    ids after it, in order. `first` is a token that every text begins with; `model` are options of `models.BPE`.
    """
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), **model))
    tokens = [AddedToken(text, normalized=False, special=special) for text, special in added]
    for token in tokens:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"],
            pair=[first, "$A", f"{first}:1", "$B:1"],
            special_tokens=[(first, tokenizer.token_to_id(first))],
        )
    return str(tokenizer.to_str(pretty=True)) + "\n"


def sentencepiece_to_fast(proto: Any, controls: Sequence[str], first: str | None) -> str:
    """The text of a `tokenizer.json` that gives the ids of the BPE model `proto` on every text.

    `controls` are pieces to list as special tokens beside those that `proto` marks; `first` begins every text.

    Three things are unlike the common conversion: the dummy space is put before a text that starts with a space too,
    runs of spaces are merged from the left as SentencePiece does, and only normal pieces take part in merges.
    """
    spec = proto.normalizer_spec
    special = (UNKNOWN, CONTROL, USER_DEFINED)
    return fast_text(
        {piece.piece: index for index, piece in enumerate(proto.pieces)},
        ranked_merges(proto),
        [
            (piece.piece, piece.type != USER_DEFINED or piece.piece in controls)
            for piece in proto.pieces
            if piece.type in special or piece.piece in controls
        ],
        normalizer=_normalizer(spec),
        decoder=_decoder(spec.add_dummy_prefix),
        first=first,
        unk_token=next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=True,
    )


def fast_to_sentencepiece(content: Mapping[str, Any], name: str) -> Any:
    """The SentencePiece BPE `ModelProto` that gives the ids of a tokenizer.json of that family (Llama, Gemma).

    The scores continue the ranks of the merges. Raises `VocabularyError` where it does not cut a sample of texts alike.
    """
    model = content["model"]
    proto = _proto(content) if model["type"] == "BPE" and model.get("byte_fallback") else None
    if proto is None or not _cut_alike(proto, content):
        raise VocabularyError(
            f"the tokenizer.json of {name} is none that SentencePiece can express",
            found=f"a {model['type']} model" + (" that cuts text in other ways" if proto is not None else ""),
            expected="BPE with byte fallback, as Llama's and Gemma's, or the tokenizer.model that it was made from",
        )
    return proto


def extended_fast(content: Mapping[str, Any], proto: Any, controls: Sequence[str]) -> dict[str, Any]:
    """`content`, the tokenizer.json that `proto` grew from, with the pieces of `proto` that it lacks, and their merges.

    All else stays: how text is normalised and cut. `controls` are those of the new pieces that are special tokens.
    """
    model = dict(content["model"])
    known = model["vocab"].keys() | {token["content"] for token in content["added_tokens"]}
    new = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.piece not in known}
    # The library numbers added tokens anew unless the model knows them, which the new pieces' ids would not survive.
    model["vocab"] = {**model["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}, **new}
    pairs = [list(pair) for pair in ranked_merges(proto) if "".join(pair) in new]
    model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]] + pairs
    tokenizer = Tokenizer.from_str(json.dumps({**content, "model": model}))
    special = [text for text, index in new.items() if proto.pieces[index].type == CONTROL or text in controls]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return dict(json.loads(tokenizer.to_str()))


def adds_token(content: Mapping[str, Any], token: str) -> bool:
    """Whether the tokenizer.json `content` puts `token` around every single text."""
    return any(
        entry.get("SpecialToken", {}).get("id") == token
        for step in _steps(content.get("post_processor"), "processors")
        for entry in (step.get("single") or () if step["type"] == "TemplateProcessing" else ())
    )


def _steps(step: Any, key: str) -> list[dict[str, Any]]:
    """A step of the pipeline, or those of a sequence."""
    if not isinstance(step, dict):
        return []
    return [inner for part in step[key] for inner in _steps(part, key)] if step.get("type") == "Sequence" else [step]


def _proto(content: Mapping[str, Any]) -> Any:
    model = content["model"]
    added = {token["content"]: token for token in content["added_tokens"]}
    pieces = {index: text for text, index in model["vocab"].items()}
    pieces |= {token["id"]: text for text, token in added.items()}
    unknown = model.get("unk_token") or "<unk>"
    scores = _scores(model)
    proto = sentencepiece_model_pb2.ModelProto()
    for index in range(max(pieces) + 1):
        text = pieces.get(index, f"<unnamed {index}>")
        kind = NORMAL if index in pieces else CONTROL
        if text == unknown:
            kind = UNKNOWN
        elif re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = BYTE
        elif text in added:
            kind = CONTROL if added[text].get("special", True) else USER_DEFINED
        proto.pieces.add(piece=text, score=scores.get(text, 0.0) if kind == NORMAL else 0.0, type=kind)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(proto.pieces)
    spec.bos_id, spec.eos_id, spec.pad_id = -1, -1, -1
    spec.unk_id = next((index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN), -1)
    for index, piece in enumerate(proto.pieces):
        if piece.piece in ("<s>", "<bos>"):
            spec.bos_id = index
        if piece.piece in ("</s>", "<eos>"):
            spec.eos_id = index
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    steps = _steps(content.get("normalizer"), "normalizers") + _steps(content.get("pre_tokenizer"), "pretokenizers")
    normalizer.add_dummy_prefix = any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return proto if spec.unk_id >= 0 else None


def _scores(model: Mapping[str, Any]) -> dict[str, float]:
    """Scores by piece: one less for each product of the merges; runs of spaces at their end share the lowest."""
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    products = list(dict.fromkeys(left + right for left, right in merges))
    last = max((rank for rank, text in enumerate(products) if text.strip(BLANK)), default=-1)
    scores = {text: -float(rank) if rank <= last else -1e9 for rank, text in enumerate(products)}
    singles = (text for text in model["vocab"] if text not in scores)
    return scores | {text: -float(last + 1 + rank) for rank, text in enumerate(singles)}


def _cut_alike(proto: Any, content: Mapping[str, Any]) -> bool:
    """Whether model and tokenizer.json give the same ids: for lines of random pieces, and for what they do not hold.

    Not so at spaces that begin a text, where Hugging Face's Metaspace puts none before them and SentencePiece does.
    """
    texts = [piece.piece.replace(BLANK, " ") for piece in proto.pieces if piece.type == NORMAL]
    chosen = random.Random(0)
    lines = ["".join(chosen.choices(texts, k=24)).strip() for _ in range(_PROBE_LINES)]
    lines += ["a b  c\n\n\td", "你好，世界", "𝒳 🦙 ﬁ é é", "def f(x):\n    return x + 1", "1234567890"]
    lines += [" ".join(chosen.choices(texts, k=24)).strip() for _ in range(_PROBE_LINES)]
    return SentencePieceEngine(proto, {}).encode_batch(lines, 1) == FastEngine(content).encode_batch(lines, 1)


def _normalizer(spec: Any) -> Any:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +|[ \u2581]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    steps.append(normalizers.Replace(" ", BLANK))
    return normalizers.Sequence(steps)


def _decoder(strip: bool) -> Any:
    steps: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
