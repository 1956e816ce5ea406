"""Token Distillation (Dobler et al. 2025, arXiv 2505.20133), as a rival for `training_quality.py`.

New rows start at the mean of their pieces' rows. Snippets of text that hold new tokens are read by the base in old
tokens and by the grown model in new ones; the embedding's new rows learn, by AdamW at one rate, to make the states
after the last layer equal in the mean of squares, from the first new token on. Where the head is not tied, its new rows
learn by the next token's cross-entropy on the same snippets; a tied row learns from both, the second scaled to the
first's size. The body stands still.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from yangtuo.artifacts.manifest import Kind, open_artifact
from yangtuo.growing.windows import WindowSample, align, of_new_language, readable
from yangtuo.training import loop
from yangtuo.vocab.encoding import load_encoder

SNIPPET, BATCH, RATE = 50, 16, 1e-3
NUM_SNIPPETS = 32768


def distil_tokens(
    work: Path, seconds: float, seed: int = 0, rate: float = RATE, name: str = "token-distillation.pt"
) -> int:
    """Learns the new rows of the model `work/mean` for so many seconds of processors; returns the number of steps.

    The rate falls linearly with the time. The rows go to the file `name`, see `put_rows`.
    """
    old, new = load_encoder(work / "base"), load_encoder(work / "tokenizer")
    manifest = open_artifact(str(work / "mean"), Kind.MODEL).manifest
    assert manifest is not None
    num_old = int(manifest.details["first_new_row"])
    sources = [old.split_piece(piece) for piece in new.pieces[num_old:]]
    sample = WindowSample(new.bos_id, NUM_SNIPPETS, SNIPPET)
    texts = [path.read_text(encoding="utf-8") for path in sorted((work / "zh").iterdir())]
    for _ in sample.passing(ids for text in texts for ids in new.encode_arrays([text])):
        pass
    windows = readable(sample.windows(), num_old, sources)
    windows = windows[of_new_language(windows, num_old)]
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    model = AutoModelForCausalLM.from_pretrained(work / "mean", dtype=loop.compute_dtype("auto")).eval()
    model.requires_grad_(False)
    rows = _Rows(model, num_old)
    optimizer = torch.optim.AdamW(rows.learned, lr=rate, weight_decay=0.0)
    start, step = time.process_time(), 0
    while (gone := (time.process_time() - start) / seconds) < 1:
        batch = windows[torch.arange(step * BATCH, (step + 1) * BATCH) % len(windows)]
        optimizer.param_groups[0]["lr"] = rate * (1 - gone)
        rows.take_gradients(batch, sources)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    torch.save({"num_old": num_old, "rows": [part.detach() for part in rows.learned]}, work / name)
    print(
        f"Token Distillation: {step:,} steps of {BATCH} snippets, {step * BATCH / len(windows):.1f} epochs", flush=True
    )
    return step


def put_rows(model: PreTrainedModel, path: Path) -> None:
    """Puts the rows of the file `path` in the place of the model's own."""
    kept = torch.load(path, weights_only=True)
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]  # type: ignore[no-untyped-call]
    for matrix, rows in zip(matrices, kept["rows"], strict=False):  # a tied model has one set of rows
        matrix.data[kept["num_old"] :] = rows.to(matrix.dtype)


class _Rows:
    """The rows that learn: those of the embedding, and those of a head that is not tied."""

    def __init__(self, model: Any, num_old: int) -> None:
        self._model, self._num_old = model, num_old
        self._embedding = model.get_input_embeddings().weight
        self._head = model.get_output_embeddings().weight
        self.is_tied = self._embedding is self._head
        matrices = [self._embedding] if self.is_tied else [self._embedding, self._head]
        self.learned = [matrix[num_old:].float().clone().requires_grad_() for matrix in matrices]

    def take_gradients(self, batch: Tensor, sources: Any) -> None:
        """Of the losses on `batch` (snippets, length), into the rows' `grad`."""
        body, old = self._model.model, self._embedding[: self._num_old]
        aligned = align(batch, self._num_old, sources)
        with torch.no_grad():
            teacher = body(inputs_embeds=old[aligned.ids], use_cache=False).last_hidden_state
            expected = aligned.at_ends(teacher).float()
        is_new = batch >= self._num_old
        inputs = old[batch.clamp_max(self._num_old - 1)].index_put(
            (is_new,), self.learned[0][batch[is_new] - self._num_old].to(old.dtype)
        )
        states = body(inputs_embeds=inputs, use_cache=False).last_hidden_state
        after = is_new.cumsum(dim=1) > 0
        matched = (states.float() - expected)[after].square().mean()
        read = states if self.is_tied else states.detach()
        logits = torch.cat([read @ self._head[: self._num_old].T, read @ self.learned[-1].to(read.dtype).T], dim=-1)
        predicted = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        scale = (matched / predicted).detach() if self.is_tied else 1.0
        (matched + scale * predicted).backward()
