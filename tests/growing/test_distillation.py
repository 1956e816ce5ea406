"""Distilling: rows learned from the states of the base, in steps that can be interrupted, where it reads the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from yangtuo.config.expand import ExpandConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.errors import ConfigError
from yangtuo.growing import distillation
from yangtuo.growing.distillation import match_states
from yangtuo.growing.states import LowerLayers, num_lower
from yangtuo.growing.windows import align
from yangtuo.stages import expand, tokenizer_merge
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.learn import sentencepiece_pieces
from yangtuo.weights.layouts import open_checkpoint

SOURCES = [[5, 6, 7], [8, 9], [10, 11, 12]]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def windows(num_old: int, amount: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, num_old, (amount, 12), generator=generator)
    ids[:, 3::3] = num_old + torch.randint(2, (amount, 3), generator=generator)  # the third new token is never met
    return ids


def distance(layers: LowerLayers, embedding: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor) -> float:
    aligned = align(ids, len(embedding), SOURCES)
    expected = aligned.at_ends(layers(embedding[aligned.ids]))
    return float((layers(torch.cat([embedding, rows])[ids]) - expected)[:, 3:].square().sum())


def test_states_after_new_tokens_come_near_those_after_the_old_ones(pico_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(pico_model)
    layers = LowerLayers(checkpoint.config, checkpoint.tensors)
    embedding = checkpoint.tensors.get(EMBEDDING)
    start = torch.stack([embedding[source].mean(dim=0) for source in SOURCES])
    ids = windows(len(embedding), 1024)
    rows = match_states(layers, embedding, start, ids[:960], SOURCES, tmp_path / "progress.pt")
    before, after = (distance(layers, embedding, some, ids[960:]) for some in (start, rows))
    assert after < 0.8 * before, (before, after)
    assert torch.equal(rows[2], start[2]), "a row without evidence stays"


def test_interrupted_work_goes_on_to_the_same_rows(
    pico_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(pico_model)
    layers = LowerLayers(checkpoint.config, checkpoint.tensors)
    embedding, start = checkpoint.tensors.get(EMBEDDING), torch.zeros(3, 32)
    ids = windows(len(embedding), 96)
    whole = match_states(layers, embedding, start, ids, SOURCES, tmp_path / "whole.pt")
    monkeypatch.setattr(distillation, "_SAVE_SECONDS", 0)
    calls = iter(range(3))
    seen = distillation.align
    monkeypatch.setattr(distillation, "align", lambda *args: (next(calls), seen(*args))[1])
    with pytest.raises((StopIteration, RuntimeError)):
        match_states(layers, embedding, start, ids, SOURCES, tmp_path / "part.pt")
    monkeypatch.setattr(distillation, "align", seen)
    assert torch.equal(match_states(layers, embedding, start, ids, SOURCES, tmp_path / "part.pt"), whole)


def test_lower_layers_are_those_of_the_model(pico_model: Path) -> None:
    checkpoint = open_checkpoint(pico_model)
    ids = torch.arange(5, 25)[None]
    model = AutoModelForCausalLM.from_pretrained(pico_model).eval()
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[num_lower(checkpoint.config)]
        expected = model.model.layers[num_lower(checkpoint.config)].input_layernorm(hidden)
    layers = LowerLayers(checkpoint.config, checkpoint.tensors)
    torch.testing.assert_close(layers(checkpoint.tensors.get(EMBEDDING)[ids]), expected)


@pytest.mark.parametrize("fixture", ["pico_model", "pico_tied_model"])
def test_expand_distils_and_says_what_it_costs(
    fixture: str,
    pico_tokenizer: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base: Path = request.getfixturevalue(fixture)
    (tmp_path / "pieces.model").write_bytes(sentencepiece_pieces(["小", "镇", "小镇", "河"]))
    tokenizer_merge.run(
        TokenizerMergeConfig(
            base=str(pico_tokenizer), pieces=str(tmp_path / "pieces.model"), output=tmp_path / "tokenizer"
        )
    )
    (tmp_path / "zh.txt").write_text("小镇里有河，河边有小镇。" * 2000, encoding="utf-8")
    (tmp_path / "en.txt").write_text("Once upon a time there was a river. " * 2000, encoding="utf-8")
    made = expand.run(
        ExpandConfig(
            model=str(base),
            tokenizer=str(tmp_path / "tokenizer"),
            init="distil",
            text=(str(tmp_path / "zh.txt"), str(tmp_path / "en.txt")),
            output=tmp_path / "grown",
        )
    )
    result = made.result()
    assert result["init"] == "distil" and result["distilled_tokens"] > 0
    assert "on this machine; `--init cooccurrence` leaves it out" in " ".join(capsys.readouterr().err.split())
    figures = result["bits_per_byte"]
    assert figures["old language"]["grown"] < figures["old language"]["base"] * 1.2
    assert not list(made.path.glob(".*")), "work in progress was left behind"
    before, after = load_file(base / "model.safetensors"), load_file(made.path / "model.safetensors")
    num_old = len(before[EMBEDDING])
    assert all(torch.equal(after[name][: len(value)], value) for name, value in before.items() if name != HEAD)
    moved = (after[HEAD][:num_old] != before.get(HEAD, before[EMBEDDING])).any(dim=1).nonzero()[:, 0].tolist()
    assert made.manifest is not None
    assert moved and set(moved) <= set(made.manifest.details["related_rows"]), "of old rows those of the language learn"
    assert json.loads((made.path / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False
    model, report = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.get_input_embeddings().weight.shape[0] == load_encoder(made.path).vocabulary_size


def test_a_base_that_cannot_read_the_language_teaches_nothing(
    pico_tied_model: Path, pico_tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "pieces.model").write_bytes(sentencepiece_pieces(["小", "镇", "小镇", "河"]))
    tokenizer = tmp_path / "tokenizer"
    tokenizer_merge.run(
        TokenizerMergeConfig(base=str(pico_tokenizer), pieces=str(tmp_path / "pieces.model"), output=tokenizer)
    )
    (tmp_path / "zh.txt").write_text("小镇里有河，河边有小镇。" * 2000, encoding="utf-8")
    config = ExpandConfig(
        model=str(pico_tied_model),
        tokenizer=str(tokenizer),
        text=(str(tmp_path / "zh.txt"),),
        output=tmp_path / "grown",
    )
    result = expand.run(config).result()
    assert result["init"] == "cooccurrence" and result["tied"] and result["distilled_tokens"] == 0
    with pytest.raises(ConfigError, match="distil needs text"):
        expand.run(
            ExpandConfig(model=str(pico_tied_model), tokenizer=str(tokenizer), init="distil", output=tmp_path / "x")
        )
