"""Byte-level BPE tokenizers (GPT-2, Llama 3, SmolLM2, Qwen): reading with checks, learning and joining merges.

The base's merges are continued under its own pre-tokenizer. First each wanted character becomes one piece, through
merges of its bytes from the left; then words are merged out of whole characters, so that no new merge can take part
in text of other scripts. Knows no directory layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer

from yangtuo.errors import VocabularyError
from yangtuo.vocab.engines import FastEngine
from yangtuo.vocab.learn import (
    Candidate,
    continue_merges,
    covering_characters,
    earned,
    learn_within,
    script_lines,
    used_candidates,
)
from yangtuo.vocab.scripts import Scripts

Merge = tuple[str, str]
_SIGNS = re.compile(r"\[\^\\s\\p\{L\}\\p\{N\}\]\+(\[[^\]]*\]\*)?")  # the alternative of a split for runs of signs
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How ByteLevel parts words with `use_regex`, from GPT-2's encoder.py."""
_MAX_MISSING_BYTES = 56  # SmolLM2 lacks 21 bytes, which only rare or invalid UTF-8 holds


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}


_TO_CHARACTER = _byte_characters()
_TO_BYTE = {character: byte for byte, character in _TO_CHARACTER.items()}


def to_byte_level(text: str) -> str:
    """`text` as byte-level vocabularies write it: one printable character a UTF-8 byte."""
    return "".join(_TO_CHARACTER[byte] for byte in text.encode("utf-8"))


def piece_bytes(piece: str) -> bytes:
    """The bytes of a byte-level piece; an added token's text is taken as it is."""
    if all(character in _TO_BYTE for character in piece):
        return bytes(_TO_BYTE[character] for character in piece)
    return piece.encode("utf-8")


def require_byte_level(content: Mapping[str, Any], name: str) -> None:
    """Raises `VocabularyError` unless the tokenizer.json `content` is byte-level BPE."""
    kind = content["model"]["type"]
    steps = json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])
    missing = 256 - sum(character in content["model"]["vocab"] for character in _TO_BYTE)
    if kind != "BPE" or '"ByteLevel"' not in steps or missing > _MAX_MISSING_BYTES:
        raise VocabularyError(
            f"{name} cannot be extended with merges",
            found=f"a {kind} model, {'byte-level' if 'ByteLevel' in steps else 'not byte-level'}, "
            f"{missing} of 256 bytes without a piece",
            expected="byte-level BPE (Llama 3, SmolLM2, Qwen) or a SentencePiece BPE model (LLaMA, Mistral)",
        )


def chars_per_word(content: Mapping[str, Any], lines: Sequence[str]) -> float:
    """Characters per word as the pre-tokenizer of a tokenizer.json parts `lines`: no merge gets beyond that."""
    words = sum(map(len, FastEngine(content).encode_words(lines)))
    return sum(map(len, lines)) / max(words, 1)


def widen(content: Mapping[str, Any], scripts: Scripts) -> dict[str, Any]:
    """The tokenizer.json `content` with a pre-tokenizer that keeps words of `scripts` whole, with marks and joiners.

    All other text is parted as before: signs right after a mark were one run with it, and stay a run of their own.
    Raises `VocabularyError` where the pre-tokenizer is none that this can be done with. llama.cpp knows pre-tokenizers
    by name, and none of these.
    """
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and scripts.letter.match(chr(code))]
    edges = [codes[0], *(edge for a, b in pairwise(codes) if b != a + 1 for edge in (a, b)), codes[-1]]
    letters = "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in zip(edges[::2], edges[1::2], strict=True))
    word = rf"{' ?' if scripts.takes_blank else ''}[{letters}][{letters}\p{{M}}\x{{200C}}\x{{200D}}]*|"
    step = content.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = []
    for part in step.get("pretokenizers", [step]):
        if part["type"] == "ByteLevel" and part.get("use_regex", True) and not part["add_prefix_space"]:
            steps += [_split(_after_marks(_GPT2_SPLIT) + word + _GPT2_SPLIT), {**part, "use_regex": False}]
        elif part["type"] == "Split" and "Regex" in part["pattern"] and part["behavior"] in ("Isolated", "Removed"):
            own = part["pattern"]["Regex"]
            steps.append({**part, "pattern": {"Regex": _after_marks(own) + word + own}})
        else:
            steps.append(part)
    widened = {**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    sample = "".join(map(chr, codes[:8]))
    if chars_per_word(widened, [sample]) < len(sample):
        raise VocabularyError(
            "the base's pre-tokenizer cannot be widened",
            found=", ".join(part["type"] for part in step.get("pretokenizers", [step])),
            expected="one that parts words by a regular expression, as GPT-2, Llama 3, Qwen and SmolLM2 do",
            run="the same command without --widen",
        )
    return widened


def _after_marks(split: str) -> str:
    """The base's own alternative for a run of signs, right after a mark: `'s` there is no contraction, for one."""
    signs = _SIGNS.search(split)
    return rf"(?<=[\p{{M}}\x{{200C}}\x{{200D}}]){signs[0]}|" if signs else ""


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True)
class LearnedMerges:
    """New merges in their order."""

    merges: list[Merge]
    num_characters: int
    """How many whole characters they form."""


def learn_merges(
    base: Mapping[str, Any], texts: Iterable[str], size: int, scripts: Scripts, held_out: Sequence[str] = ()
) -> LearnedMerges:
    """Learns `size` merges of `scripts` after those of the tokenizer.json content `base`, from `texts`.

    Pieces that `held_out` does not use give way to others. Raises `VocabularyError` where the texts hold fewer.
    """
    lines, counts = script_lines(texts, scripts, blank=" ")
    engine = FastEngine(base)
    pieces = _pieces(base)
    spelled = {
        character: [pieces[index] for index in engine.split(to_byte_level(character))]
        for character in covering_characters(counts)
    }
    # A character whose first bytes other scripts need as they are (such as U+FF5E) stays apart.
    apart = [
        character
        for character, parts in spelled.items()
        if len(parts) > 1 and all(_acceptable("".join(merge), scripts) for merge in _character_merges([parts]))
    ]

    def learn(characters: Sequence[str]) -> list[Candidate]:
        first = _character_merges(spelled[character] for character in characters)[:size]
        num_merges = size + (size // 2 if held_out else 0) - len(first)
        merges = [*first, *_word_merges(_extended(base, first), lines, scripts, num_merges)]
        return [Candidate(left + right, (left, right)) for left, right in merges]

    candidates = learn_within(size, apart, learn)
    if held_out:
        grown = FastEngine(_extended(base, [(candidate.parts[0], candidate.parts[1]) for candidate in candidates]))
        candidates = earned(candidates, size, used_candidates(grown, held_out, len(pieces), candidates))
    merges = [(candidate.parts[0], candidate.parts[1]) for candidate in candidates[:size]]
    return LearnedMerges(merges, sum(_is_character(left + right) for left, right in merges))


def _character_merges(spelled: Iterable[Sequence[str]]) -> list[Merge]:
    """Merges that join each character's parts from the left; shared beginnings once."""
    merges: dict[Merge, None] = {}
    for parts in spelled:
        left = parts[0]
        for right in parts[1:]:
            merges[left, right] = None
            left += right
    return list(merges)


def _word_merges(content: Mapping[str, Any], lines: Sequence[str], scripts: Scripts, num_merges: int) -> list[Merge]:
    pieces = _pieces(content)
    usable = {index: piece for index, piece in enumerate(pieces) if _usable(piece, scripts)}
    known = set(pieces)
    merges: dict[str, Merge] = {}
    for left, right in continue_merges(
        FastEngine(content), usable, lines, num_merges, lambda piece: scripts.accepts(_text(piece))
    ):
        if left + right not in known:
            merges.setdefault(left + right, (left, right))
    return list(merges.values())


def _usable(piece: str, scripts: Scripts) -> bool:
    return scripts.stands_in(_text(piece))


@dataclass(frozen=True)
class MergedByteLevel:
    """An extended tokenizer.json and what became of the merges."""

    content: dict[str, Any]
    added: list[str]
    """Texts of the new pieces in the order of their ids; parts of a character show as U+FFFD."""
    out_of_script: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)


def merge_byte_level(
    base: Mapping[str, Any], merges: Sequence[Merge], scripts: Scripts, add_tokens: Sequence[str]
) -> MergedByteLevel:
    """Joins `merges` and the control tokens `add_tokens` to the tokenizer.json content `base`.

    Raises `VocabularyError` where the merges were learned for another base or a token exists.
    """
    known = set(_pieces(base))
    clashes = [token for token in add_tokens if token in known or not token]
    special = {token["content"] for token in base["added_tokens"]}
    clashes += [left + right for left, right in merges if left + right in special]
    if clashes:
        raise VocabularyError(
            "new pieces or tokens have the text of existing tokens",
            found=", ".join(clashes[:8]),
            expected="texts that are no piece of the base",
        )
    kept: list[Merge] = []
    dropped: list[str] = []
    orphans: list[Merge] = []
    for left, right in merges:
        if left not in known or right not in known:
            orphans.append((left, right))
        elif _acceptable(left + right, scripts):
            known.add(left + right)
            kept.append((left, right))
        else:
            dropped.append(_text(left + right))
    if orphans and not dropped:
        first = " + ".join(map(_text, orphans[0]))
        raise VocabularyError(
            "the merges were learned for another base",
            found=f"{len(orphans):,} merges of pieces that the base lacks, the first {first}",
            expected="merges that `yangtuo tokenizer train` learned with this --base",
        )
    dropped += [_text(left + right) for left, right in orphans]
    content = _extended(base, kept)
    unreachable = _unreachable(content, kept)
    if unreachable:
        content = _extended(base, [pair for pair in kept if pair[0] + pair[1] not in unreachable])
    size = len(_pieces(content))
    # The library numbers added tokens anew unless the model knows them.
    content["model"]["vocab"] |= {token: size + rank for rank, token in enumerate(add_tokens)}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in add_tokens])
    content = json.loads(tokenizer.to_str())
    added = [_text(piece) for piece in dict.fromkeys(left + right for left, right in kept) if piece not in unreachable]
    return MergedByteLevel(content, added, dropped, [_text(piece) for piece in unreachable])


def _unreachable(content: Mapping[str, Any], merges: Sequence[Merge]) -> set[str]:
    """New pieces that merges do not make of their own bytes, and all that is built on them."""
    model = {**content["model"], "ignore_merges": False}
    engine = FastEngine({**content, "model": model})
    lost: set[str] = set()
    for left, right in merges:
        piece = left + right
        if left in lost or right in lost or len(engine.split(piece)) != 1:
            lost.add(piece)
    return lost


def _extended(base: Mapping[str, Any], merges: Sequence[Merge]) -> dict[str, Any]:
    """`base` with `merges` appended and a piece, with the next free id, for each new product."""
    model = dict(base["model"])
    vocabulary = dict(model["vocab"])
    # The library numbers added tokens anew unless the model knows them, which the new pieces' ids would not survive.
    vocabulary |= {token["content"]: token["id"] for token in base["added_tokens"]}
    known = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    next_id = max(vocabulary.values()) + 1
    for left, right in merges:
        if left + right not in vocabulary:
            vocabulary[left + right] = next_id
            next_id += 1
    model["vocab"] = vocabulary
    model["merges"] = known + [list(pair) for pair in merges]
    return {**base, "model": model, "added_tokens": list(base["added_tokens"])}


def _pieces(content: Mapping[str, Any]) -> list[str]:
    """Piece by id, added tokens included."""
    ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    pieces = [""] * (max(ids.values()) + 1)
    for text, index in ids.items():
        pieces[index] = text
    return pieces


def _text(piece: str) -> str:
    return piece_bytes(piece).decode("utf-8", errors="replace")


def _is_character(piece: str) -> bool:
    text = _text(piece)
    return len(text) == 1 and text != "\ufffd"


def _acceptable(piece: str, scripts: Scripts) -> bool:
    """Whether a product may be a new piece: accepted text, or the beginning of characters that all are accepted."""
    data = piece_bytes(piece)
    try:
        return scripts.accepts(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return scripts.begins(data[: error.start], data[error.start :])
