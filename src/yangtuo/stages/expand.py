"""`yangtuo expand`: grows a model's embedding and head to a tokenizer's pieces.

Reads like its summary: the model and its tokenizer, the new tokenizer, a source for every new row, the grown model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.expand import ExpandConfig
from yangtuo.data.readers import sampled_texts
from yangtuo.errors import ConfigError, LineageError, WeightsError, raise_all
from yangtuo.growing.cooccurrence import NEW_LANGUAGE, Cooccurrence, count_cooccurrence
from yangtuo.growing.distillation import NUM_READ, POOL, WINDOW, distil
from yangtuo.growing.fitting import fit_rows
from yangtuo.growing.judging import base_bits, byte_entropy, grown_bits
from yangtuo.growing.rows import GrownTensors, NewRows
from yangtuo.growing.states import last_states, obstacle
from yangtuo.growing.windows import Apart, WindowSample, of_new_language, readable
from yangtuo.vocab.advice import advise
from yangtuo.vocab.directory import GENERATION_FILE, read_directory
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.weights.checkpoint import CONFIG_FILE, Checkpoint, mended_ids, write_json, write_weights
from yangtuo.weights.layouts import open_checkpoint
from yangtuo.weights.shape import refuse_running_text

_PROGRESS = ".distillation.pt"
_FIT_WINDOWS, _FIT_LENGTH = 64, 256
_TRIAL_BYTES, _SELDOM = 4_000_000, 10  # text that a dry run reads, and how often a row should be met in it
_TEXT_BYTES = 64_000_000  # text that cooccurrence counts in; more adds little


def run(config: ExpandConfig) -> Artifact | dict[str, Any]:
    """Writes the grown model into `config.output`; a dry run only returns what growing would save and cost."""
    refuse_existing(config.output)
    model = open_artifact(config.model, Kind.MODEL)
    tokenizer = open_artifact(config.tokenizer, Kind.TOKENIZER, Kind.MODEL)
    old, new = load_encoder(model.path), load_encoder(tokenizer.path)
    checkpoint = open_checkpoint(model.path)
    raise_all(refuse_running_text(config.model, checkpoint.config, "a larger vocabulary, which only text can teach,"))
    _check_options(config, checkpoint)
    num_kept = _kept_rows(config, checkpoint, old, new)
    sources = [_sources(old, new, index, num_kept) for index in range(num_kept, len(new.pieces))]
    texts = {f"text {number}": open_artifact(text) for number, text in enumerate(config.text, 1)}
    if config.dry_run:
        return _dry_run(old, new, num_kept, [text.path for text in texts.values()])
    with draft(config, Kind.MODEL, {"model": model, "tokenizer": tokenizer, **texts}, resumable=True) as made:
        start = _start(config, checkpoint, sources, num_kept, new, [text.path for text in texts.values()])
        related = _related_rows(old, sources, start.counted, num_kept)
        learned = _learn(config, checkpoint, start, sources, related, new, made.path / _PROGRESS)
        made.hashes.update(write_weights(made.path, start.grown, description="growing"))
        (made.path / _PROGRESS).unlink(missing_ok=True)
        files = read_directory(tokenizer.path).with_defaults_of(read_directory(model.path))
        files.write(made.path)
        _write_config(made.path, checkpoint, new, files.special_id("pad_token"), start.grown.tied)
        made.describe(
            tokenizer=new.fingerprint,
            vocabulary_size=new.vocabulary_size,
            details={
                "vocabulary_size": new.vocabulary_size,
                "base_vocabulary_size": old.vocabulary_size,
                "first_new_row": num_kept,
                "new_rows": len(sources),
                "related_rows": related,
                "tied": start.grown.tied,
                **learned,
            },
        )
    num_rows = start.grown.shape(start.grown.embedding)[0]
    console.detail(f"{num_kept:,} rows kept, {len(sources):,} new: {num_rows:,} rows for as many pieces")
    return made.artifact


def _dry_run(old: Encoder, new: Encoder, num_kept: int, paths: Sequence[Path]) -> dict[str, Any]:
    """What the new pieces save in the texts that use them, how often each is met, and what that is worth."""
    counts = np.zeros(new.vocabulary_size, dtype=np.int64)
    num_characters, num_old, num_new = 0, 0, 0
    for text in sampled_texts(paths, _TRIAL_BYTES):
        (ids,) = new.encode_arrays([text])
        if len(ids) and (ids >= num_kept).mean() >= NEW_LANGUAGE:
            counts += np.bincount(ids, minlength=len(counts))
            num_characters += len(text)
            num_old, num_new = num_old + len(old.encode_arrays([text])[0]), num_new + len(ids)
    rows = counts[num_kept:]
    before, after = (num_characters / max(amount, 1) for amount in (num_old, num_new))
    advice = advise(before, after, len(rows))
    seldom = int((rows < _SELDOM).sum())
    console.note(advice.text)
    console.note(
        f"{seldom:,} of {len(rows):,} new rows are met less than {_SELDOM} times in {num_characters:,} characters"
    )
    return {
        "new_rows": len(rows),
        "seldom_rows": seldom,
        "base_chars_per_token": round(before, 4),
        "chars_per_token": round(after, 4),
        "pays": advice.pays,
        "advice": advice.text,
    }


@dataclass(frozen=True)
class _Start:
    """The grown tensors before anything is learned, and what was seen of the text on the way."""

    grown: GrownTensors
    counted: Cooccurrence | None = None
    windows: Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.long))
    """For the first fit of the head."""
    short: Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.long))
    """For distilling."""
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.long))


def _check_options(config: ExpandConfig, checkpoint: Checkpoint) -> None:
    reads = config.init in ("distil", "cooccurrence")
    if reads > bool(config.text):
        raise ConfigError(
            f"{config.init} needs text",
            found="no --text",
            expected="texts in both languages",
            run="the same command with --text PATH, or with --init subtoken-mean",
        )
    if config.text and config.init and not reads:
        raise ConfigError(
            "text is read for distil and cooccurrence alone",
            found=f"--text and --init {config.init}",
            expected="one of the two",
            run="the same command without --init, or without --text",
        )
    if config.init == "distil" and (reason := obstacle(checkpoint.config, checkpoint.tensors)):
        raise WeightsError(
            f"rows cannot be distilled from {config.model}: its states and logits are not known here",
            found=reason,
            expected="an architecture whose logits are its head's rows times its states, scaled at most",
            run="the same command with --init cooccurrence",
        )


def _start(
    config: ExpandConfig,
    checkpoint: Checkpoint,
    sources: Sequence[Sequence[int]],
    num_kept: int,
    new: Encoder,
    paths: Sequence[Path],
) -> _Start:
    """Places the new rows; one pass over the text counts neighbours and samples windows."""
    family = checkpoint.shape.family
    if not paths:
        init = config.init or "subtoken-mean"
        assert init != "distil"
        return _Start(GrownTensors(checkpoint.tensors, NewRows(num_kept, sources, init, config.seed), family))
    apart = [Apart(new.bos_id) for _ in paths]
    sample = WindowSample(new.bos_id, _FIT_WINDOWS, _FIT_LENGTH)
    short = WindowSample(new.bos_id, POOL, WINDOW)
    documents = sample.passing(short.passing(_documents(paths, new, apart)))
    hidden = checkpoint.shape.hidden_size
    counted = count_cooccurrence(documents, num_kept, new.vocabulary_size, hidden, config.seed)
    rows = NewRows(num_kept, sources, "cooccurrence", config.seed, counted)
    held_out = torch.cat([some.windows() for some in apart])
    grown = GrownTensors(checkpoint.tensors, rows, family)
    return _Start(grown, counted, sample.windows(), short.windows(), readable(held_out, num_kept, sources))


def _learn(
    config: ExpandConfig,
    checkpoint: Checkpoint,
    start: _Start,
    sources: Sequence[Sequence[int]],
    related: Sequence[int],
    new: Encoder,
    progress: Path,
) -> dict[str, Any]:
    """Fits and distils the new rows as far as text and base allow; returns what the manifest says of it."""
    if start.counted is None:
        return {"init": config.init or "subtoken-mean", "fitted_tokens": 0}
    if reason := obstacle(checkpoint.config, checkpoint.tensors):
        console.note(f"the new rows stay as cooccurrence placed them, neither fitted nor distilled: {reason}")
        return {"init": "cooccurrence", "fitted_tokens": 0}
    fitted = _fit_head(start.grown, checkpoint, start.windows, config) if config.fit_head else 0
    num_kept = start.grown.num_kept
    of_new = of_new_language(start.held_out, num_kept)
    groups = {"new language": start.held_out[of_new], "old language": start.held_out[~of_new]}
    groups = {name: windows for name, windows in groups.items() if len(windows)}
    texts = {name: [new.decode(window[1:]) for window in windows.tolist()] for name, windows in groups.items()}
    num_bytes = {name: sum(len(text.encode()) for text in some) for name, some in texts.items()}
    began = time.monotonic()
    before = {
        name: base_bits(checkpoint.config, checkpoint.tensors, windows, sources, num_kept) / num_bytes[name]
        for name, windows in groups.items()
    }
    reads = "new language" in before and before["new language"] < byte_entropy(texts["new language"])
    init, tokens = "cooccurrence", 0
    if config.init == "distil" or (config.init is None and reads):
        init = "distil"
        pace = (time.monotonic() - began) / max(1, sum(windows.numel() for windows in groups.values()))
        _say_how_long(pace)
        tokens = distil(
            checkpoint.config, checkpoint.tensors, start.grown, start.short, sources, related, progress, config.seed
        )
    elif config.init is None:
        console.detail("the base does not read the new language by its own pieces: there is nothing to distil")
    after = {
        name: grown_bits(checkpoint.config, start.grown, windows) / num_bytes[name] for name, windows in groups.items()
    }
    for name in groups:
        console.note(
            f"held-out text of the {name}, bits per byte (lower is better): {before[name]:.3f} of the base, "
            f"{after[name]:.3f} grown"
        )
    return {
        "init": init,
        "fitted_tokens": fitted,
        "distilled_tokens": tokens,
        "bits_per_byte": {name: {"base": before[name], "grown": after[name]} for name in groups},
    }


def _say_how_long(pace: float) -> None:
    """`pace` is how many seconds a token of held-out text took the base.

    It reads more tokens for it, in smaller batches, so that all of distilling takes about as long for each token read:
    1,772 s of processors foretold for SmolLM2-135M and 4,000 pieces, 1,692 taken.
    """
    expected = console.duration(pace * NUM_READ)
    console.note(
        f"distilling reads {NUM_READ:,} tokens at most, about {expected} on this machine; "
        "`--init cooccurrence` leaves it out"
    )


def _fit_head(grown: GrownTensors, checkpoint: Checkpoint, windows: Tensor, config: ExpandConfig) -> int:
    """Fits the head's new rows to the states that the grown model reaches in text; returns in how many tokens of it."""
    rows, reason = None, "the text is too short"
    if len(windows):
        states = last_states(checkpoint.config, grown, windows)
        rows = fit_rows(grown.get(grown.head), grown.num_kept, windows, states, config.seed)
        reason = "it gains nothing on text held back from it"
    if rows is None:
        console.note(f"the head's new rows stay as cooccurrence placed them, without a fit: {reason}")
        return 0
    grown.replace(grown.head, grown.new_places, rows)
    return windows.numel()


def _documents(paths: Sequence[Path], encoder: Encoder, apart: Sequence[Apart]) -> Iterator[npt.NDArray[np.int32]]:
    """The ids of the texts, an equal budget for each path: neither language may drown the other."""
    for path, held_out in zip(paths, apart, strict=True):
        texts = sampled_texts([path], _TEXT_BYTES // len(paths))
        yield from held_out.passing(ids for text in texts for ids in encoder.encode_arrays([text]))


def _related_rows(
    old: Encoder, sources: Sequence[Sequence[int]], counted: Cooccurrence | None, num_kept: int
) -> list[int]:
    """Old rows of the new language: those beyond ASCII that new pieces stand for, and those that its texts use."""
    used = {index for source in sources for index in source}
    decoded = ((index, old.decode([index]).strip()) for index in used)
    own = {index for index, text in decoded if text and not any(character.isascii() for character in text)}
    return sorted(own.union(counted.related_rows(num_kept) if counted else ()))


def _kept_rows(config: ExpandConfig, checkpoint: Checkpoint, old: Encoder, new: Encoder) -> int:
    """The number of rows that keep their place; raises where tokenizer and model do not belong together."""
    embedding = checkpoint.shape.embedding
    if embedding not in checkpoint.tensors.names():
        found = ", ".join(checkpoint.tensors.names()[:3])
        raise WeightsError(f"{config.model} has no embedding under the name {embedding}", found=found)
    differing = [
        index
        for index, (old_piece, new_piece) in enumerate(zip(old.pieces, new.pieces, strict=False))
        if old_piece != new_piece
    ]
    if differing or new.vocabulary_size < old.vocabulary_size:
        found = (
            f"id {differing[0]} is {old.pieces[differing[0]]!r} in the model and {new.pieces[differing[0]]!r} in the "
            f"tokenizer; {len(differing):,} ids differ"
            if differing
            else f"{new.vocabulary_size:,} pieces, the model has {old.vocabulary_size:,}"
        )
        raise LineageError(
            f"the tokenizer {config.tokenizer} does not extend that of {config.model}",
            found=found,
            expected="a tokenizer whose first ids are the model's",
            run=f"yangtuo tokenizer merge --base {config.model} --pieces PIECES --output TOKENIZER",
        )
    return min(old.vocabulary_size, checkpoint.tensors.shape(embedding)[0])


def _sources(old: Encoder, new: Encoder, index: int, num_kept: int) -> list[int]:
    """The rows that the model has used for the piece so far; none for a control token, or a piece that had no row."""
    piece = new.pieces[index]
    return [] if piece in new.controls else [row for row in old.split_piece(piece) if row < num_kept]


def _write_config(directory: Path, checkpoint: Checkpoint, encoder: Encoder, pad_id: int | None, tied: bool) -> None:
    """config.json and generation_config.json; stop ids stay the model's, for old ids do not move."""
    special = {"bos_token_id": encoder.bos_id, "eos_token_id": encoder.eos_id}
    config = mended_ids(checkpoint.config, encoder)
    config |= {name: index for name, index in special.items() if config.get(name) is None}
    config["vocab_size"] = encoder.vocabulary_size
    if checkpoint.shape.tied:
        config["tie_word_embeddings"] = tied
    generation = {**special, **mended_ids(checkpoint.generation, encoder)}
    if pad_id is not None:
        config["pad_token_id"] = generation["pad_token_id"] = pad_id
    write_json(directory / CONFIG_FILE, config)
    write_json(directory / GENERATION_FILE, generation)
