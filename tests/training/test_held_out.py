"""What a held-out figure promises: each token counted once, with context, whatever the windows, at a bounded cost."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.inference.transformers_engine import load_model
from yangtuo.training import base, held_out
from yangtuo.training.adapter import AdapterShape, attach, quiet_peft
from yangtuo.vocab.encoding import load_encoder

CPU = torch.device("cpu")


@dataclass
class Text:
    documents: list[torch.Tensor]
    num_bytes: int
    name: str = "en"


@pytest.mark.parametrize("size", [1, 2, 3, 16, 33])
def test_each_token_counts_once_with_half_a_window_before_it(size: int) -> None:
    lengths = [1, 2, size - 1, size, size + 1, 5 * size, 101]
    windows = held_out.slide(lengths, size)
    for document, length in enumerate(lengths):
        own = [window for window in windows if window.document == document]
        assert [place for window in own for place in range(window.scored, window.end)] == list(range(1, length))
        for window in own:
            assert window.end - window.begin <= max(size, 2)
            assert window.begin == 0 or window.scored - window.begin == max(size, 2) // 2
        assert sum(window.end - window.begin for window in own) <= max(2 * length, 2), "twice the text is the most"
        assert size < 2 or len(own) <= 1 or length > size, "what fits is read once"


def test_no_batch_is_larger_than_allowed_and_none_is_lost() -> None:
    windows = held_out.slide([3, 90, 7, 16, 40], 16)
    batches = held_out.group(windows, 40)
    assert sorted(map(repr, windows)) == sorted(repr(window) for batch in batches for window in batch)
    assert all(len(batch) * max(window.end - window.begin for window in batch) <= 40 for batch in batches)


@pytest.mark.parametrize("max_tokens", [20, 64, 500])
def test_a_measurement_has_a_bounded_cost(max_tokens: int) -> None:
    """Of long texts the first windows are measured, and bytes are counted in proportion."""
    source = Text([torch.arange(200), torch.arange(100)], num_bytes=1000)
    measure = held_out.pack(source, 16, 2, max_tokens)
    read = [int((inputs["input_ids"] > 0).sum()) for inputs, _ in measure.batches]
    counted = sum(int((inputs["labels"] >= 0).sum()) for inputs, _ in measure.batches)
    assert sum(read) <= max_tokens
    assert max(inputs["input_ids"].numel() for inputs, _ in measure.batches) <= 32
    assert counted > max_tokens * 0.4 or counted == 298
    assert measure.num_bytes == pytest.approx(1000 * counted / 298)


@pytest.mark.parametrize("embeddings", ["full", "new", "frozen"])
def test_training_measures_what_evaluate_does(pico_model: Path, embeddings: str) -> None:
    """Two figures of one text by two rules cannot be compared, and somebody will."""
    texts = ["The old man walked to the market. " * 30, "A short one.", "你好，羊驼！"]
    encoder = load_encoder(pico_model)
    documents = [torch.tensor([encoder.bos_id, *encoder.encode(text)]) for text in texts]
    source = Text(documents, sum(len(text.encode()) for text in texts))
    model = attach(
        base.load_base(pico_model, torch.float32),
        AdapterShape(rank=4, alpha=8, embeddings=embeddings, new_rows=range(380, 400)),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    told: list[str] = []
    measures = [held_out.pack(source, 256, 2, 1 << 17)]
    figure = held_out.bits_per_byte(model, measures, contextlib.nullcontext, CPU, told.append)["en"]
    assert figure == pytest.approx(score_text(model, encoder, texts).bits_per_byte, rel=1e-5)
    assert told[-1] == f"measuring en: {len(measures[0].batches)} of {len(measures[0].batches)} batches"
    with model.disable_adapter():
        assert figure != pytest.approx(score_text(model, encoder, texts).bits_per_byte, rel=1e-3)


@pytest.mark.parametrize("how", ["softcap", "bias", "scale", "unknown scale", "lora"])
def test_heads_that_are_not_plain_are_scored_as_transformers_computes_them(pico_model: Path, how: str) -> None:
    """Logits that a model bends, or that an adapter has a part in, must not be taken for states times a matrix."""
    from peft import LoraConfig, get_peft_model

    model, encoder = load_model(pico_model), load_encoder(pico_model)
    inner = model.forward
    if how == "lora":
        with quiet_peft():
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)).eval()
    elif how == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    else:
        model.config.update({"softcap": {"final_logit_softcapping": 0.5}, "scale": {"logit_scale": 3.0}}.get(how, {}))

        def bent(*args, **inputs):
            output = inner(*args, **inputs)
            output.logits = 0.5 * torch.tanh(output.logits / 0.5) if how == "softcap" else output.logits * 3.0
            return output

        model.forward = bent
    texts, bits = ["The cat sat on the mat. " * 4, "He went home."], 0.0
    for text in texts:
        ids = torch.tensor([[encoder.bos_id, *encoder.encode(text)]])
        with torch.no_grad():
            likelihoods = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        bits -= likelihoods.gather(1, ids[0, 1:, None]).sum().item() / math.log(2)
    assert sum(score_text(model, encoder, texts).document_bits) == pytest.approx(bits, rel=1e-5)
