"""Fitting a head's new rows: windows of the text, the states there, and rows that say the text better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.shapes import SMALL
from transformers import AutoConfig, AutoModelForCausalLM

from yangtuo.growing import fitting
from yangtuo.growing import states as growing_states
from yangtuo.growing.fitting import fit_rows, refine_rows
from yangtuo.growing.rows import GrownTensors, NewRows
from yangtuo.growing.states import LowerLayers, last_states, obstacle
from yangtuo.weights.layouts import open_checkpoint

OLD, NEW, HIDDEN = 20, 12, 16


def speech(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A head, and windows of a new and of an old language with the states from which the head says them."""
    head = torch.randn(OLD + NEW, HIDDEN, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    new, old = (torch.randint(*span, (100, 64), generator=generator) for span in ((OLD, OLD + NEW), (0, OLD)))
    windows = torch.stack([new, old], dim=1).flatten(0, 1)
    states = head[torch.roll(windows, -1, dims=1)]
    return head, windows, states + torch.randn(states.shape, generator=generator)


def nats(head: torch.Tensor, windows: torch.Tensor, states: torch.Tensor) -> tuple[float, float]:
    """Cross-entropy of the new language and of the old one."""
    losses = torch.nn.functional.cross_entropy(
        (states[:, :-1] @ head.T).flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
    ).view(len(windows), -1)
    return float(losses[::2].mean()), float(losses[1::2].mean())


def test_rows_that_stand_askew_are_turned_to_where_they_say_the_text() -> None:
    head, windows, states = speech()
    turn = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1))).Q
    askew = torch.cat([head[:OLD], 0.5 * head[OLD:] + 0.5 * head[OLD:] @ turn + 0.3])
    rows = fit_rows(askew, OLD, windows, states)
    assert rows is not None and rows.shape == (NEW, HIDDEN)
    _, *unseen = speech(2)
    before, after = nats(askew, *unseen), nats(torch.cat([askew[:OLD], rows]), *unseen)
    assert after[0] < 0.5 * before[0] and after[1] < before[1] + 0.01, (before, after)


def test_the_old_language_does_not_pay() -> None:
    """New rows that stay out of the old language's way are not brought forward at its cost."""
    head, windows, states = speech()
    states[:, :, 0], head[OLD:, 0] = 1.0, -4.0  # nothing tells the languages apart, and new rows hold back
    quiet = head.clone()
    rows = fit_rows(quiet, OLD, windows, states)
    before = nats(quiet, windows, states)
    after = before if rows is None else nats(torch.cat([quiet[:OLD], rows]), windows, states)
    assert after[1] < before[1] + 0.1, (before, after)


@pytest.mark.parametrize("made", [(), (5.0,), (5.0, -1.0, -5.0)])
def test_what_other_windows_do_not_confirm_is_not_taken(
    made: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all passes the best one counts, and only where it beats the rows as they were."""
    head, windows, states = speech()
    askew = torch.cat([head[:OLD], head[OLD:] + 1.0])
    none = torch.zeros(HIDDEN, HIDDEN)
    monkeypatch.setattr(fitting, "_learn", lambda *_: (fitting._Map(none, torch.full((HIDDEN,), off)) for off in made))
    rows = fit_rows(askew, OLD, windows, states)
    assert (rows is not None) is (-1.0 in made)
    if rows is not None:
        torch.testing.assert_close(rows, head[OLD:])


def test_the_folded_map_gives_the_same_logits() -> None:
    head, _, states = speech()
    generator = torch.Generator().manual_seed(3)
    learned = fitting._Map(torch.randn(HIDDEN, HIDDEN, generator=generator), torch.randn(HIDDEN, generator=generator))
    rows = head[OLD:]
    torch.testing.assert_close(
        states[0] @ learned.folded_into(rows).T, learned.logits(states[0], rows, rows.mean(dim=0)), rtol=1e-4, atol=1e-3
    )


def test_old_rows_of_the_new_language_learn_with_the_new_ones() -> None:
    """A new token takes over a part of what was said with an old one, so that both must move."""
    shared = 3
    generator = torch.Generator().manual_seed(4)
    heard: list[tuple[torch.Tensor, torch.Tensor]] = []
    for seed in (0, 2):
        head, windows, _ = speech(seed)
        windows[::2][torch.rand(windows[::2].shape, generator=generator) < 0.3] = shared
        states = head[torch.roll(windows, -1, dims=1)]
        heard.append((windows, states + torch.randn(states.shape, generator=generator)))
    (windows, states), unseen = heard
    askew = head.clone()
    askew[shared] = 0.3 * head[shared]
    new = torch.arange(OLD, OLD + NEW)
    after = []
    for places in (new, torch.cat([torch.tensor([shared]), new])):
        rows = refine_rows(askew, OLD, places, windows, states.clone())
        assert rows is not None and rows.shape == (len(places), HIDDEN)
        after.append(nats(askew.index_copy(0, places, rows), *unseen))
    before = nats(askew, *unseen)
    assert after[1][0] < 0.9 * after[0][0] < before[0], (before, after)
    assert after[1][1] < before[1] + 0.05, (before, after)


def test_text_without_new_tokens_fits_nothing() -> None:
    head, windows, states = speech()
    assert fit_rows(head, OLD, windows % OLD, states) is None
    assert fit_rows(head, OLD, windows[:0], states[:0]) is None
    assert refine_rows(head, OLD, torch.arange(OLD, OLD + NEW), windows % OLD, states) is None


@pytest.mark.parametrize("has_room", [False, True])
@pytest.mark.parametrize("fixture", ["pico_model", "pico_tied_model"])
def test_states_are_those_of_the_whole_model(
    fixture: str, has_room: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = request.getfixturevalue(fixture)
    windows = torch.randint(3, 200, (40, 16), generator=torch.Generator().manual_seed(0))
    windows[:, 7] = 401
    checkpoint = open_checkpoint(path)
    rows = NewRows(400, [[5, 6], [7, 8]], "subtoken-mean", 0)
    grown = GrownTensors(checkpoint.tensors, rows, checkpoint.shape.family)
    monkeypatch.setattr(growing_states, "_has_room", lambda *_: has_room)
    states = last_states(checkpoint.config, grown, windows)  # whose config knows nothing of new rows yet
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        embedded = grown.get(grown.embedding)[windows]
        expected = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    assert states.dtype == model.dtype
    torch.testing.assert_close(states.float(), expected.float(), rtol=0.02, atol=0.02)


FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 8},  # scales its embedding
    "gemma3_text": {"head_dim": 8, "tie_word_embeddings": False},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.25},
}


def small(kind: str, directory: Path, **config: Any) -> Path:
    settings = AutoConfig.for_model(kind, **{**SMALL, "vocab_size": 300, "pad_token_id": 0, **config})
    AutoModelForCausalLM.from_config(settings, dtype=torch.float32).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("has_room", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_times_states_are_the_logits_in_every_family(
    kind: str, has_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_states, "_has_room", lambda *_: has_room)
    path = small(kind, tmp_path, **FAMILIES[kind])
    checkpoint = open_checkpoint(path)
    assert obstacle(checkpoint.config, checkpoint.tensors) is None
    windows = torch.randint(3, 200, (4, 16), generator=torch.Generator().manual_seed(0))
    states = last_states(checkpoint.config, checkpoint.tensors, windows)
    head = checkpoint.shape.embedding if checkpoint.shape.tied else checkpoint.shape.head
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        read = model(windows, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(states @ checkpoint.tensors.get(head).T, read.logits, rtol=1e-3, atol=1e-3)
    lower = LowerLayers(checkpoint.config, checkpoint.tensors)
    expected = model.model.layers[1].input_layernorm(read.hidden_states[1])
    torch.testing.assert_close(lower(checkpoint.tensors.get(checkpoint.shape.embedding)[windows]), expected)


def test_logits_that_rows_and_states_do_not_give_are_refused_by_name(pico_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(pico_model)
    for kind, reason in (("unheard-of", "knows no unheard-of"), ("gpt2", "has no tensor transformer.")):
        assert reason in str(obstacle({**checkpoint.config, "model_type": kind}, checkpoint.tensors))
    squashed = open_checkpoint(small("gemma2", tmp_path / "gemma2", head_dim=8))
    assert "final_logit_softcapping 30" in str(obstacle(squashed.config, squashed.tensors))
    biased = open_checkpoint(small("phi", tmp_path / "phi"))
    assert "has a bias" in str(obstacle(biased.config, biased.tensors))
