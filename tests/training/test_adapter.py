"""What an adapter trains must be what was asked for, or users pay for a run that learns nothing or too much."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from yangtuo.errors import LineageError, TrainingError
from yangtuo.training.adapter import (
    AdapterShape,
    attach,
    continue_from,
    count_trainable,
    linear_layers,
    require_written,
)

SEVEN = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def load(path: Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


def test_all_linear_layers_but_the_head_are_found(pico_model: Path, pico_tied_model: Path) -> None:
    assert linear_layers(load(pico_model)) == SEVEN
    assert linear_layers(load(pico_tied_model)) == SEVEN


@pytest.mark.parametrize(("embeddings", "num_rows"), [("full", 400), ("new", 10), ("frozen", 0)])
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_rows_that_learn(pico_model: Path, pico_tied_model: Path, embeddings, num_rows, tied) -> None:
    """A tied model has one matrix to train, an untied one two; nobody trains all rows who asked for the new ones."""
    shape = AdapterShape(rank=4, alpha=8, embeddings=embeddings, new_rows=range(390, 400))
    model = attach(load(pico_tied_model if tied else pico_model), shape)
    assert count_trainable(model).embeddings == num_rows * 32 * (1 if tied else 2)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trainable} == {torch.float32}
    assert count_trainable(model).lora == 4 * 2 * (3 * (32 + 64) + 2 * (32 + 16) + 2 * (32 + 32))


def test_new_rows_need_to_be_known(pico_model: Path) -> None:
    with pytest.raises(TrainingError, match="which rows are new"):
        attach(load(pico_model), AdapterShape(rank=4, alpha=8, embeddings="new"))


def test_an_earlier_adapter_goes_on_learning_and_must_fit(pico_model: Path, tmp_path: Path) -> None:
    first = attach(load(pico_model), AdapterShape(rank=4, alpha=8, embeddings="new", new_rows=range(390, 400)))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25)
    first.save_pretrained(str(tmp_path / "first"), save_embedding_layers=False)
    second = continue_from(load(pico_model), tmp_path / "first")
    earlier = {name: parameter for name, parameter in first.named_parameters() if parameter.requires_grad}
    later = {name: parameter for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert earlier.keys() == later.keys()
    assert all(torch.equal(earlier[name], later[name]) for name in earlier)
    smaller = load(pico_model)
    smaller.resize_token_embeddings(300, mean_resizing=False)
    with pytest.raises(LineageError, match="does not fit"):
        continue_from(smaller, tmp_path / "first")


def test_what_was_written_is_compared_with_what_was_trained(tmp_path: Path) -> None:
    """A disk that lies, or a tensor left out of the file, must not be found weeks later."""
    trained = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    path = tmp_path / "adapter_model.safetensors"
    save_file(trained, path)
    require_written(path, trained)
    for written in ({"a": trained["a"]}, {**trained, "b": torch.full((4,), 1e-7)}, {**trained, "c": torch.ones(1)}, {}):
        save_file(written, path)
        with pytest.raises(TrainingError, match="does not hold what was trained"):
            require_written(path, trained)
