"""Task vectors over grown vocabularies: what a tuned model learned beyond its base, as an update to a grown model.

The difference of two models that share a tokenizer (Ilharco et al. 2023) holds for every model grown from the base, for
old ids never move: all its rows are old rows. New rows stay as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from yangtuo.artifacts.manifest import Artifact
from yangtuo.errors import ConfigError, LineageError, UserError, WeightsError, raise_all
from yangtuo.weights.adapter import Adapter, Difference, Update
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.layouts import open_checkpoint
from yangtuo.weights.shape import Family

_HUB_ID = r"(?:modelscope:)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"

_LEAST_COSINE = 0.9  # of old rows before and after an adaptation; those of unrelated models are near 0
_NUM_COMPARED = 4096


@dataclass(frozen=True)
class Model:
    """One of the models that a difference is taken of."""

    path: Path
    tensors: Tensors
    family: Family
    pieces: list[str]

    @property
    def num_rows(self) -> int:
        """Rows of the embedding that belong to a piece; those beyond are padding."""
        return min(len(self.pieces), self.tensors.shape(self.family.embedding)[0])


class _Pair:
    """The tensors of both models by name, as `tuned/NAME` and `base/NAME`; a tied head is the embedding."""

    def __init__(self, tuned: Tensors, base: Tensors, family: Family) -> None:
        self._models = {"tuned": tuned, "base": base}
        self._family = family

    def names(self) -> list[str]:
        return [f"{side}/{name}" for side, tensors in self._models.items() for name in tensors.names()]

    def _find(self, key: str) -> tuple[Tensors, str]:
        side, name = key.split("/", 1)
        tensors = self._models[side]
        is_tied_head = name == self._family.head and name not in tensors.names()
        return tensors, self._family.embedding if is_tied_head else name

    def shape(self, key: str) -> tuple[int, ...]:
        tensors, name = self._find(key)
        return tensors.shape(name)

    def dtype(self, key: str) -> torch.dtype:
        tensors, name = self._find(key)
        return tensors.dtype(name)

    def get(self, key: str) -> torch.Tensor:
        tensors, name = self._find(key)
        return tensors.get(name)


def open_model(artifact: Artifact) -> Model:
    """The model directory with its tokenizer; raises `FileError` where it has none."""
    checkpoint = open_checkpoint(artifact.path)
    return Model(artifact.path, checkpoint.tensors, checkpoint.shape.family, checkpoint.tokenizer.pieces)


def split_difference(text: str) -> tuple[str, str]:
    """The references of `TUNED-BASE`: both sides exist on this disk, or both are hub ids; raises `ConfigError`.

    Where names hold hyphens of their own, spaces around the one that counts tell it apart.
    """
    spaced = [part.strip() for part in text.split(" - ")]
    if len(spaced) == 2 and all(spaced):
        return spaced[0], spaced[1]
    cuts = [(text[:place], text[place + 1 :]) for place, character in enumerate(text) if character == "-"]
    for is_one in (lambda side: Path(side).exists(), re.compile(_HUB_ID).fullmatch):
        fitting = [cut for cut in cuts if all(map(is_one, cut))]
        if len(fitting) == 1:
            return fitting[0]
    raise ConfigError(
        f"--add {text!r} is not one difference of two models",
        found=f"{len(fitting)} ways to read it as hub ids, and none as two directories",
        expected="TUNED-BASE, two directories or two hub ids",
        run='the same command with spaces around the minus: --add "TUNED - BASE"',
    )


def task_vector(tuned: Model, base: Model, grown: Model, scale: float) -> Adapter:
    """`scale` times what `tuned` learned beyond `base`, as an update to a model with the ids of `grown`.

    Tokens that only `tuned` has (`<|im_end|>`) bring their rows whole. Raises all that speaks against it, at once.
    """
    ids = {piece: index for index, piece in enumerate(grown.pieces)}
    raise_all(_misfits(tuned, base, grown, ids))
    shared = min(tuned.num_rows, base.num_rows)
    whole = tuple((ids[piece], row) for row, piece in enumerate(tuned.pieces[: tuned.num_rows]) if row >= shared)
    # Where all three are tied, what happens to the embedding happens to the head.
    embedding, head = grown.family.embedding, grown.family.head
    tied = all(head not in model.tensors.names() for model in (tuned, base, grown))
    names = [name for name in tuned.tensors.names() if name != head] + [head] * (not tied)
    updates: dict[str, list[Update]] = {}
    for name in names:
        has_rows = name in (embedding, head)
        keys = (f"tuned/{name}", f"base/{name}")
        updates[name] = [Difference(*keys, scale, shared, whole) if has_rows else Difference(*keys, scale)]
    pair = _Pair(tuned.tensors, base.tensors, grown.family)
    return Adapter(f"{tuned.path} - {base.path}", tuned.path, pair, updates, ties_embeddings=True)


def _misfits(tuned: Model, base: Model, grown: Model, ids: Mapping[str, int]) -> list[UserError]:
    errors: list[UserError] = []
    embedding = base.family.embedding
    names = [set(model.tensors.names()) - {base.family.head} for model in (tuned, base)]
    unlike = sorted(names[0] ^ names[1])
    unlike += [
        name
        for name in sorted(names[0] & names[1])
        if tuned.tensors.shape(name)[name == embedding :] != base.tensors.shape(name)[name == embedding :]
    ]
    if unlike:
        errors.append(
            WeightsError(
                f"{tuned.path} and {base.path} are not of one shape",
                found=f"{len(unlike)} tensors differ: {', '.join(unlike[:3])}",
                expected="a tuned model and the base that it was tuned from",
            )
        )
    for encoder in (tuned, grown):
        moved = [row for row, piece in enumerate(base.pieces) if encoder.pieces[row : row + 1] != [piece]]
        if moved:
            errors.append(
                LineageError(
                    f"the ids of {encoder.path} do not begin with those of {base.path}",
                    found=f"{len(moved):,} differ, the first is id {moved[0]}, {base.pieces[moved[0]]!r}",
                    expected="the base that both were made from",
                    run=f"yangtuo inspect {encoder.path}",
                )
            )
    missing = [piece for piece in tuned.pieces[min(tuned.num_rows, base.num_rows) : tuned.num_rows] if piece not in ids]
    if missing and not errors:
        tokens = " ".join(f"--add-token {shlex.quote(piece)}" for piece in missing[:4])
        errors.append(
            LineageError(
                f"{tuned.path} has {len(missing)} tokens that {grown.path} lacks",
                found=", ".join(missing[:4]),
                expected="a grown vocabulary with all tokens that the tuned model speaks with",
                run=f"yangtuo tokenizer merge --base {base.path} --pieces PIECES {tokens} --output TOKENIZER",
            )
        )
    return errors or _strangers(base, grown)


def _strangers(base: Model, grown: Model) -> list[UserError]:
    """Refuses a model that did not grow from `base`: its old rows look elsewhere."""
    places = torch.arange(0, base.num_rows, max(1, base.num_rows // _NUM_COMPARED))
    before, after = (model.tensors.get(base.family.embedding)[places].double() for model in (base, grown))
    cosine = float((before * after).sum() / (before.norm() * after.norm()).clamp_min(1e-30))
    if before.shape == after.shape and cosine >= _LEAST_COSINE:
        return []
    return [
        LineageError(
            f"{grown.path} did not grow from {base.path}",
            found=f"old rows of the embedding at a cosine of {cosine:.2f}",
            expected=f"at least {_LEAST_COSINE}: the base that the model was expanded and adapted from",
            run=f"yangtuo inspect {grown.path}",
        )
    ]
