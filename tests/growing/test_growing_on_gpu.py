"""Growing on a GPU: states, rows and head are those that a CPU computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.growing.test_fitting import NEW, OLD, nats, speech

from yangtuo.growing import fitting, states
from yangtuo.growing.distillation import match_states
from yangtuo.weights.layouts import open_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Growing computes in float32 on `device` from here on."""
    for module in (states, fitting):
        monkeypatch.setattr(module, "fastest", lambda: (torch.float32, torch.device(device)))


@pytest.mark.parametrize("has_room", [False, True])
def test_states_are_those_of_a_cpu(pico_model: Path, has_room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(pico_model)
    windows = torch.randint(3, 200, (40, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(states, "_has_room", lambda _, device: has_room and device.type == "cuda")
    read = []
    for device in ("cpu", "cuda"):
        on(device, monkeypatch)
        read.append(states.last_states(checkpoint.config, checkpoint.tensors, windows))
    torch.testing.assert_close(*read, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("refines", [False, True])
def test_the_head_is_fitted_as_on_a_cpu(refines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    head, windows, read = speech()
    found = []
    for device in ("cpu", "cuda"):
        on(device, monkeypatch)
        places = torch.arange(OLD, OLD + NEW)
        rows = (
            fitting.refine_rows(head, OLD, places, windows, read.clone())
            if refines
            else fitting.fit_rows(head, OLD, windows, read)
        )
        assert rows is not None and rows.device.type == "cpu"
        found.append(nats(head.index_copy(0, places, rows), windows, read))
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_rows_are_distilled_as_on_a_cpu(pico_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(pico_model)
    embedding = checkpoint.tensors.get("model.embed_tokens.weight")
    sources = [[5, 6, 7], [8, 9]]
    windows = torch.randint(20, len(embedding), (128, 12), generator=torch.Generator().manual_seed(0))
    windows[:, 3] = len(embedding)
    windows[:, 7] = len(embedding) + 1
    found = []
    for device in ("cpu", "cuda"):
        on(device, monkeypatch)
        layers = states.LowerLayers(checkpoint.config, checkpoint.tensors)
        start = torch.zeros(2, embedding.shape[1])
        found.append(match_states(layers, embedding, start, windows, sources, tmp_path / f"{device}.pt"))
    torch.testing.assert_close(*found, rtol=0.01, atol=1e-3)
