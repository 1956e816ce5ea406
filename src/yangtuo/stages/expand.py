"""`yangtuo expand`: grows a model's embedding and head to a tokenizer's pieces.

Reads like its summary: the model and its tokenizer, the new tokenizer, a source for every new row, the grown model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.expand import ExpandConfig
from yangtuo.data.readers import sampled_texts
from yangtuo.errors import ConfigError, LineageError, WeightsError
from yangtuo.growing.cooccurrence import Company, keep_company
from yangtuo.growing.fitting import WindowSample, fit_rows
from yangtuo.growing.rows import GrownTensors, Init, NewRows
from yangtuo.growing.states import last_states
from yangtuo.vocab.directory import GENERATION_FILE, read_directory
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.weights.checkpoint import CONFIG_FILE, Checkpoint, mended_ids, write_json, write_weights
from yangtuo.weights.layouts import open_checkpoint

_TEXT_BYTES = 64_000_000  # text that cooccurrence counts in; more adds little


def run(config: ExpandConfig) -> Artifact:
    """Writes the grown model into `config.output`."""
    refuse_existing(config.output)
    model = open_artifact(config.model, Kind.MODEL)
    tokenizer = open_artifact(config.tokenizer, Kind.TOKENIZER, Kind.MODEL)
    old, new = load_encoder(model.path), load_encoder(tokenizer.path)
    checkpoint = open_checkpoint(model.path)
    init = _chosen_init(config)
    num_kept = _kept_rows(config, checkpoint, old, new)
    sources = [_sources(old, new, index) for index in range(num_kept, len(new.pieces))]
    texts = {f"text {number}": open_artifact(text) for number, text in enumerate(config.text, 1)}
    company, sample = None, WindowSample(new.bos_id)
    if init == "cooccurrence":
        documents = sample.passing(_documents([text.path for text in texts.values()], new))
        hidden = checkpoint.shape.hidden_size
        company = keep_company(documents, num_kept, new.vocabulary_size, hidden, config.seed)
    rows = NewRows(num_kept, sources, init, config.seed, company)
    grown = GrownTensors(checkpoint.tensors, rows, checkpoint.shape.family)
    fits = init == "cooccurrence" and config.fit_head
    fitted_tokens = _fit_head(grown, checkpoint, sample.windows(), config) if fits else 0
    with draft(config, Kind.MODEL, {"model": model, "tokenizer": tokenizer, **texts}) as made:
        made.hashes.update(write_weights(made.path, grown, description="growing"))
        files = read_directory(tokenizer.path).with_defaults_of(read_directory(model.path))
        files.write(made.path)
        _write_config(made.path, checkpoint, new, files.special_id("pad_token"))
        made.describe(
            tokenizer=new.fingerprint,
            vocabulary_size=new.vocabulary_size,
            details={
                "vocabulary_size": new.vocabulary_size,
                "base_vocabulary_size": old.vocabulary_size,
                "first_new_row": num_kept,
                "new_rows": len(rows.sources),
                "init": init,
                "fitted_tokens": fitted_tokens,
                "related_rows": _related_rows(old, sources, company),
                "tied": checkpoint.shape.tied,
            },
        )
    console.note(f"{num_kept:,} rows kept, {len(rows.sources):,} new: {rows.num_rows:,} rows for as many pieces")
    return made.artifact


def _chosen_init(config: ExpandConfig) -> Init:
    if (config.init == "cooccurrence") > bool(config.text):
        raise ConfigError(
            "cooccurrence needs text to count in",
            found="no --text",
            expected="texts in both languages",
            run="the same command with --text PATH, or with --init subtoken-mean",
        )
    if config.text and config.init not in (None, "cooccurrence"):
        raise ConfigError(
            "text is read for cooccurrence alone",
            found=f"--text and --init {config.init}",
            expected="one of the two",
            run="the same command without --init, or without --text",
        )
    return config.init or ("cooccurrence" if config.text else "subtoken-mean")


def _fit_head(grown: GrownTensors, checkpoint: Checkpoint, windows: torch.Tensor, config: ExpandConfig) -> int:
    """Fits the head's new rows to the states that the grown model reaches in text; returns in how many tokens of it."""
    rows, reason = None, "the text is too short"
    if len(windows):
        states = last_states(checkpoint.config, grown, windows)
        reason = "this architecture's states cannot be computed"
        if states is not None:
            rows = fit_rows(grown.head(), grown.num_kept, windows, states, config.seed)
            reason = "it gains nothing on text held back from it"
    if rows is None:
        console.note(f"the head's new rows stay as cooccurrence placed them, without a fit: {reason}")
        return 0
    grown.replace_new_in_head(rows)
    return windows.numel()


def _documents(paths: Sequence[Path], encoder: Encoder) -> Iterator[npt.NDArray[np.int32]]:
    """The ids of the texts, an equal budget for each path: neither language may drown the other."""
    for path in paths:
        for text in sampled_texts([path], _TEXT_BYTES // len(paths)):
            yield from encoder.encode_arrays([text])


def _related_rows(old: Encoder, sources: Sequence[Sequence[int]], company: Company | None) -> list[int]:
    """Old rows of the new language: those beyond ASCII that new pieces stand for, and those that its texts use."""
    used = {one for source in sources for one in source}
    decoded = ((one, old.decode([one]).strip()) for one in used)
    own = {one for one, text in decoded if text and not any(character.isascii() for character in text)}
    return sorted(own.union(company.kindred(old.vocabulary_size) if company else ()))


def _kept_rows(config: ExpandConfig, checkpoint: Checkpoint, old: Encoder, new: Encoder) -> int:
    """The number of rows that keep their place; raises where tokenizer and model do not belong together."""
    embedding = checkpoint.shape.embedding
    if embedding not in checkpoint.tensors.names():
        found = ", ".join(checkpoint.tensors.names()[:3])
        raise WeightsError(f"{config.model} has no embedding under the name {embedding}", found=found)
    differing = [index for index, (one, other) in enumerate(zip(old.pieces, new.pieces, strict=False)) if one != other]
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


def _sources(old: Encoder, new: Encoder, index: int) -> list[int]:
    """The ids that the model has used for the piece so far; none for a control token."""
    piece = new.pieces[index]
    return [] if piece in new.controls else [one for one in old.split_piece(piece) if one < old.vocabulary_size]


def _write_config(directory: Path, checkpoint: Checkpoint, encoder: Encoder, pad_id: int | None) -> None:
    """config.json and generation_config.json; stop ids stay the model's, for old ids do not move."""
    special = {"bos_token_id": encoder.bos_id, "eos_token_id": encoder.eos_id}
    config = mended_ids(checkpoint.config, encoder)
    config |= {name: index for name, index in special.items() if config.get(name) is None}
    config["vocab_size"] = encoder.vocabulary_size
    generation = {**special, **mended_ids(checkpoint.generation, encoder)}
    if pad_id is not None:
        config["pad_token_id"] = generation["pad_token_id"] = pad_id
    write_json(directory / CONFIG_FILE, config)
    write_json(directory / GENERATION_FILE, generation)
