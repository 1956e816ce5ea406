"""Bits per byte: the figure by which every model here is judged."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import yangtuo
from yangtuo.config.convert import ConvertConfig
from yangtuo.errors import VocabularyError
from yangtuo.evaluation import bits_per_byte
from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.inference.transformers_engine import load_model
from yangtuo.stages import convert
from yangtuo.vocab.encoding import load_encoder

TEXTS = ["The cat sat on the mat.", "你好，羊驼！", "A much longer line, " * 9]


def test_it_equals_the_sum_of_log_likelihoods_taken_one_by_one(pico_model: Path) -> None:
    """Padding and batching must not leak into the figure."""
    model, encoder = load_model(pico_model), load_encoder(pico_model)
    bits = 0.0
    for text in TEXTS:
        ids = torch.tensor([[encoder.bos_id, *encoder.encode(text)]])
        with torch.no_grad():
            likelihoods = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        bits -= likelihoods.gather(1, ids[0, 1:, None]).sum().item() / math.log(2)
    score = score_text(model, encoder, TEXTS, batch_size=2)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert score.bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-5)
    assert (score.num_bytes, score.num_characters) == (num_bytes, sum(map(len, TEXTS)))
    assert score.num_tokens == sum(len(encoder.encode(text)) for text in TEXTS)


def test_a_tokenizer_that_marks_no_beginning_is_refused(pico_model: Path) -> None:
    """Its first token would be predicted from nothing: the user's to know, and no fault of the program."""
    nothing: Any = SimpleNamespace(bos_id=None, eos_id=None)
    with pytest.raises(VocabularyError, match="where a text begins"):
        score_text(load_model(pico_model), nothing, TEXTS)


def test_long_documents_are_read_in_windows_and_every_token_once(
    pico_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder = load_model(pico_model), load_encoder(pico_model)
    text = "The old man walked to the market. " * 12
    whole = score_text(model, encoder, [text])
    monkeypatch.setattr(bits_per_byte, "MAX_WINDOW", 32)
    cut = score_text(model, encoder, [text])
    assert cut.num_tokens == whole.num_tokens
    assert cut.document_bits != whole.document_bits
    assert cut.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.1)


def test_the_figure_hardly_depends_on_the_length_of_the_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that has learned, of which the same text is asked in windows of two lengths."""
    quickstart = Path(yangtuo.__file__).parent / "quickstart"
    convert.run(ConvertConfig(source=str(quickstart / "base"), output=tmp_path / "base"))
    model, encoder = load_model(tmp_path / "base"), load_encoder(tmp_path / "base")
    texts = [path.read_text(encoding="utf-8") for path in sorted((quickstart / "texts/en").iterdir())]
    documents = ["\n\n".join(texts[start::3]) for start in range(3)]
    figures = {}
    for window in (128, 256):
        monkeypatch.setattr(bits_per_byte, "MAX_WINDOW", window)
        figures[window] = score_text(model, encoder, documents).bits_per_byte
    assert figures[128] == pytest.approx(figures[256], rel=0.0025), "windows side by side differ by 0.4 %"


def test_an_interval_is_taken_over_documents(pico_model: Path) -> None:
    """It holds the figure, and is narrower with more documents; of one document there is none."""
    model, encoder = load_model(pico_model), load_encoder(pico_model)
    few, many = (score_text(model, encoder, TEXTS * count).to_dict() for count in (1, 20))
    low, high = few["bits_per_byte_interval"]
    assert low < few["bits_per_byte"] < high
    assert many["bits_per_byte"] == pytest.approx(few["bits_per_byte"], abs=1e-3)
    assert many["bits_per_byte_interval"][1] - many["bits_per_byte_interval"][0] < (high - low) / 3
    assert len(few["documents"]) == few["num_documents"] == 3
    assert score_text(model, encoder, TEXTS[:1]).to_dict()["bits_per_byte_interval"] is None


def test_a_real_model_gives_what_a_plain_loop_over_transformers_gives(shared_data: Path, tmp_path: Path) -> None:
    """Its own tokenizer, one document at a time, no batches, no windows of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert.run(ConvertConfig(source=str(shared_data / "models/stories260K"), output=tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    texts = ["Once upon a time, there was a little girl named Lily.", "She saw a big dog. It was 3 years old!", "你好"]
    texts.append("Tom and Ben went to the park to play with a red ball, and they were very happy. " * 3)
    bits = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        assert ids[0, 0] == tokenizer.bos_token_id
        with torch.no_grad():
            bits += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) / math.log(2)
    score = score_text(load_model(tmp_path / "model"), load_encoder(tmp_path / "model"), texts, batch_size=2)
    assert score.bits_per_byte == pytest.approx(bits / sum(len(text.encode()) for text in texts), abs=1e-3)
