"""Joining pieces to a SentencePiece BPE model: faithfully, or as Chinese-LLaMA's published file was made.

Faithful: the base's ids, scores and segmentation of all other text stay; each new piece has a score of its own below
the base's, is reachable by merges, and is made of the wanted scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from yangtuo.errors import VocabularyError
from yangtuo.vocab.scripts import BLANK, Scripts
from yangtuo.vocab.sentencepiece_model import CONTROL, NORMAL, load_processor

_MAX_ROUNDS = 8


@dataclass(frozen=True)
class Merged:
    """A merged model and what became of the pieces."""

    model: bytes
    added: list[str]
    """New pieces, in the order of their ids."""
    closed: list[str] = field(default_factory=list)
    """Those of `added` that no one asked for: intermediates without which others cannot be reached."""
    out_of_script: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    """Pieces left out because merges never produce them."""


def ordered_pieces(proto: Any) -> list[str]:
    """The normal pieces of a SentencePiece model, best score first."""
    normal = [(-piece.score, index, piece.piece) for index, piece in enumerate(proto.pieces) if piece.type == NORMAL]
    return [text for _, _, text in sorted(normal)]


def merge_faithful(base: Any, pieces: Sequence[str], scripts: Scripts, add_tokens: Sequence[str]) -> Merged:
    """Joins `pieces`, best first, and the control tokens `add_tokens` to `base`; raises `VocabularyError`."""
    _refuse_special(base, pieces)
    _refuse_known(base, add_tokens)
    known = {piece.piece for piece in base.pieces}
    wanted = [piece for piece in dict.fromkeys(pieces) if piece not in known]
    accepted = [piece for piece in wanted if scripts.accepts(piece) and known.issuperset(scripts.borrowed(piece))]
    order, unreachable = _reachable(base, _with_characters(accepted, known), scripts.accepts)
    model = extend(base, order)
    for token in add_tokens:
        model.pieces.add(piece=token, score=0.0, type=CONTROL)
    model.trainer_spec.vocab_size = len(model.pieces)
    asked = set(accepted)
    return Merged(
        model=model.SerializeToString(),
        added=order,
        closed=[piece for piece in order if piece not in asked],
        out_of_script=[piece for piece in wanted if piece not in asked],
        unreachable=unreachable,
    )


def merge_published(base: Any, pieces: Any, add_tokens: Sequence[str]) -> Merged:
    """Appends every unknown piece of the model `pieces` with score 0, in file order, then `add_tokens` alike.

    The rule of Chinese-LLaMA-Alpaca's merge_tokenizers.py; it gives their files byte for byte.
    """
    _refuse_known(base, add_tokens)
    model = _copy(base)
    known = {piece.piece for piece in base.pieces}
    added = [piece.piece for piece in pieces.pieces if piece.piece not in known]
    for text in [*added, *add_tokens]:
        model.pieces.add(piece=text, score=0.0)
    return Merged(model=model.SerializeToString(), added=added)


def lowest_score(base: Any) -> float:
    """The lowest score of a normal piece, not counting blanks, which LLaMA's model puts at -1e9."""
    return min((piece.score for piece in base.pieces if piece.type == NORMAL and piece.piece.strip(BLANK)), default=0.0)


def _with_characters(pieces: Sequence[str], known: set[str]) -> list[str]:
    """The pieces, with each character that has none of its own put before the first piece that needs it."""
    order: dict[str, None] = {}
    for piece in pieces:
        order.update(dict.fromkeys(character for character in piece if character not in known))
        order[piece] = None
    return list(order)


def outward(parts: Sequence[str], accepts: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Merges that join `parts` to the right, then to the left, of the first accepted one, so that all products are."""
    parts = list(parts)
    at = next((index for index, part in enumerate(parts) if accepts(part)), None)
    merges: list[tuple[str, str]] = []
    while at is not None and len(parts) > 1:
        at = at if at + 1 < len(parts) else at - 1
        merges.append((parts[at], parts[at + 1]))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return merges


def _reachable(base: Any, order: list[str], accepts: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Closes missing intermediates until every piece of `order` is reachable; the rest is given back apart."""
    for _ in range(_MAX_ROUNDS):
        stuck = _stuck(base, order)
        if not stuck:
            return order, []
        present = set(order)
        closed: dict[str, None] = {}
        for piece in order:
            parts = stuck.get(piece, [])
            for left, right in outward(parts, accepts)[:-1]:
                if left + right not in present:
                    closed[left + right] = None
            closed[piece] = None
        order = list(closed)
    unreachable: list[str] = []
    while stuck := _stuck(base, order):
        unreachable += stuck
        order = [piece for piece in order if piece not in stuck]
    return order, unreachable


def _stuck(base: Any, order: Sequence[str]) -> dict[str, list[str]]:
    """The pieces that merges do not produce from their own text, with what they produce instead."""
    processor = load_processor(extend(base, order), prefix=False)
    encoded = processor.encode(list(order), out_type=int)
    return {
        piece: [processor.id_to_piece(index) for index in ids]
        for piece, ids in zip(order, encoded, strict=True)
        if len(ids) != 1
    }


def extend(base: Any, order: Sequence[str]) -> Any:
    """A copy of `base` with the pieces `order` behind its own, each with the next score below the lowest."""
    model = _copy(base)
    lowest = lowest_score(base)
    for rank, text in enumerate(order, 1):
        model.pieces.add(piece=text, score=lowest - rank, type=NORMAL)
    return model


def _copy(base: Any) -> Any:
    model = sentencepiece_model_pb2.ModelProto()
    model.CopyFrom(base)
    return model


def _refuse_special(base: Any, pieces: Sequence[str]) -> None:
    special = {piece.piece for piece in base.pieces if piece.type != NORMAL}
    clashes = [piece for piece in pieces if piece in special]
    if clashes:
        raise VocabularyError(
            "new pieces have the text of the base's special tokens",
            found=", ".join(clashes[:8]),
            expected="pieces of ordinary text; special tokens keep their one id",
        )


def _refuse_known(base: Any, tokens: Sequence[str]) -> None:
    known = {piece.piece for piece in base.pieces}
    clashes = [token for token in tokens if token in known or not token]
    if clashes:
        raise VocabularyError(
            "tokens to add exist already",
            found=", ".join(clashes),
            expected="--add-token with a text that is no piece of the base",
        )
