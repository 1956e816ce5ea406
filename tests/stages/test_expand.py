"""`yangtuo expand`: a whole model comes back that behaves as before on old ids, with as many rows as pieces."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from yangtuo.config.expand import ExpandConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.errors import ConfigError, LineageError
from yangtuo.stages import expand, tokenizer_merge
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.learn import sentencepiece_pieces


@pytest.fixture
def tokenizer(pico_tokenizer: Path, tmp_path: Path) -> Path:
    """The pico tokenizer with four Chinese pieces and a padding token."""
    (tmp_path / "pieces.model").write_bytes(sentencepiece_pieces(["小", "镇", "小镇", "河"]))
    output = tmp_path / "tokenizer"
    tokenizer_merge.run(
        TokenizerMergeConfig(
            base=str(pico_tokenizer), pieces=str(tmp_path / "pieces.model"), add_token=("[PAD]",), output=output
        )
    )
    return output


@pytest.mark.parametrize("fixture", ["pico_model", "pico_tied_model"])
def test_the_grown_model_computes_as_before(
    fixture: str, tokenizer: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(fixture)
    artifact = expand.run(ExpandConfig(model=str(base), tokenizer=str(tokenizer), output=tmp_path / "grown"))
    encoder = load_encoder(tokenizer)
    size = encoder.vocabulary_size
    assert artifact.manifest and artifact.manifest.tokenizer == encoder.fingerprint
    assert artifact.result()["new_rows"] == 5
    old = AutoModelForCausalLM.from_pretrained(base)
    new, report = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not any(report.values()), report
    tied = fixture == "pico_tied_model"
    assert new.config.tie_word_embeddings is tied and new.config.vocab_size == size
    assert new.get_input_embeddings().weight.shape == new.get_output_embeddings().weight.shape == (size, 32)
    assert (new.get_input_embeddings().weight.data_ptr() == new.get_output_embeddings().weight.data_ptr()) is tied
    ids = torch.tensor([encoder.encode("Once upon a time there was a cat")])
    with torch.inference_mode():
        assert torch.equal(new(ids).logits[..., : size - 5], old(ids).logits)
    config = json.loads((tmp_path / "grown/config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, size - 1)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "grown")) == size


def test_new_rows_stand_for_what_the_base_would_have_read(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    """The blank that SentencePiece puts before a text is no part of a piece."""
    expand.run(
        ExpandConfig(model=str(pico_model), tokenizer=str(tokenizer), init="subtoken-mean", output=tmp_path / "grown")
    )
    old, new = load_encoder(pico_model), load_encoder(tokenizer)
    before = AutoModelForCausalLM.from_pretrained(pico_model).get_output_embeddings().weight
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").get_output_embeddings().weight
    index = new.pieces.index("小镇")
    sources = old.encode("小镇", prefix=False)
    assert old.decode(sources) == "小镇" and len(sources) == 6
    torch.testing.assert_close(after[index], before[sources].mean(dim=0))
    torch.testing.assert_close(after[new.pieces.index("[PAD]")], before.mean(dim=0))


def test_padded_rows_give_way(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Published models round their rows up; exactly as many rows as pieces come back."""
    model = AutoModelForCausalLM.from_pretrained(pico_model)
    model.resize_token_embeddings(448, mean_resizing=False)
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(pico_model).save_pretrained(tmp_path / "padded")
    (tmp_path / "padded/tokenizer.model").write_bytes((pico_model / "tokenizer.model").read_bytes())
    artifact = expand.run(
        ExpandConfig(model=str(tmp_path / "padded"), tokenizer=str(tokenizer), output=tmp_path / "grown")
    )
    assert artifact.result()["new_rows"] == 5
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    assert grown.get_input_embeddings().weight.shape[0] == 405


def test_a_tokenizer_of_another_base_is_refused(
    pico_model: Path, pico_byte_level: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(LineageError, match="does not extend"):
        expand.run(ExpandConfig(model=str(pico_model), tokenizer=str(pico_byte_level), output=tmp_path / "out"))
    grown = tmp_path / "grown"
    expand.run(ExpandConfig(model=str(pico_model), tokenizer=str(tokenizer), output=grown))
    with pytest.raises(LineageError, match="400 pieces, the model has 405"):
        expand.run(ExpandConfig(model=str(grown), tokenizer=str(pico_model), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_chat_template_of_the_model_goes_along(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(pico_model, tmp_path / "chat")
    (tmp_path / "chat/chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    expand.run(ExpandConfig(model=str(tmp_path / "chat"), tokenizer=str(tokenizer), output=tmp_path / "grown"))
    assert (tmp_path / "grown/chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"


def test_text_places_new_rows_by_their_neighbours(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time 小镇 was a cat 河 and a 小 dog.\n" * 40, encoding="utf-8")
    config = ExpandConfig(model=str(pico_model), tokenizer=str(tokenizer), output=tmp_path / "grown")
    plain = expand.run(config)
    placed = expand.run(dataclasses.replace(config, text=(str(tmp_path / "text.txt"),), output=tmp_path / "placed"))
    assert (plain.result()["init"], placed.result()["init"]) == ("subtoken-mean", "cooccurrence")
    one, other = (load_file(artifact.path / "model.safetensors") for artifact in (plain, placed))
    old = load_encoder(pico_model).vocabulary_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(one[name][:old], other[name][:old])
        assert not torch.equal(one[name][old:], other[name][old:])
    rows = placed.manifest.details["related_rows"] if placed.manifest else []
    assert rows and all(load_encoder(pico_model).pieces[row].startswith("<0x") for row in rows)


@pytest.mark.parametrize("reads_text", [False, True])
def test_a_model_with_fewer_rows_than_pieces_gets_those_that_lack(
    reads_text: bool, pico_model: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """What `pretrain` says to type where a tokenizer was put beside a model that never got its rows."""
    grown = expand.run(ExpandConfig(model=str(pico_model), tokenizer=str(tokenizer), output=tmp_path / "grown")).path
    old, lacking = load_encoder(pico_model).vocabulary_size, tmp_path / "lacking"
    shutil.copytree(grown, lacking)
    before = {
        name: value[:old] if value.shape[0] > old else value
        for name, value in load_file(lacking / "model.safetensors").items()
    }
    save_file(before, lacking / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((lacking / "config.json").read_text(encoding="utf-8"))
    assert config["pad_token_id"] >= old, "padding has lost its row too"
    (lacking / "config.json").write_text(json.dumps(config | {"vocab_size": old}), encoding="utf-8")
    (lacking / "yangtuo.json").unlink()
    (tmp_path / "text.txt").write_text("Once upon a time 小镇 was a cat 河 and a 小 dog.\n" * 40, encoding="utf-8")
    text = (str(tmp_path / "text.txt"),) if reads_text else ()
    made = expand.run(ExpandConfig(model=str(lacking), tokenizer=str(lacking), text=text, output=tmp_path / "mended"))
    details = made.result()
    assert (details["first_new_row"], details["new_rows"]) == (old, load_encoder(grown).vocabulary_size - old)
    assert made.manifest and all(row < old for row in made.manifest.details["related_rows"])
    for name, value in load_file(made.path / "model.safetensors").items():
        assert torch.equal(value[: len(before[name])], before[name]), name


def test_padding_that_no_piece_has_is_left_out(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    """transformers builds no embedding whose padding lies beyond its rows."""
    shutil.copytree(pico_model, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text(encoding="utf-8"))
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"pad_token_id": 99_999}), encoding="utf-8")
    (tmp_path / "text.txt").write_text("Once upon a time 小镇 was a cat 河 and a 小 dog.\n" * 40, encoding="utf-8")
    padding = load_encoder(tokenizer).pieces.index("[PAD]")
    for name, to, expected in (("grown", tokenizer, padding), ("same", pico_model, None)):
        text = (str(tmp_path / "text.txt"),)
        flags = ExpandConfig(model=str(tmp_path / "model"), tokenizer=str(to), text=text, output=tmp_path / name)
        made = expand.run(flags).path
        assert AutoModelForCausalLM.from_pretrained(made).config.pad_token_id == expected


def test_cooccurrence_without_text_is_refused(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = ExpandConfig(model=str(pico_model), tokenizer=str(tokenizer), init="cooccurrence", output=tmp_path / "o")
    with pytest.raises(ConfigError, match="needs text"):
        expand.run(config)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("fixture", ["pico_model", "pico_tied_model"])
def test_the_head_is_fitted_to_the_text_and_nothing_else_moves(
    fixture: str, tokenizer: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    line = "Once upon a time 小镇 was a cat 河 and a 小 dog. "
    (tmp_path / "text.txt").write_text(line * 4000, encoding="utf-8")
    base: Path = request.getfixturevalue(fixture)
    placed, fitted = (
        expand.run(
            ExpandConfig(
                model=str(base),
                tokenizer=str(tokenizer),
                text=(str(tmp_path / "text.txt"),),
                fit_head=fit_head,
                output=tmp_path / name,
            )
        )
        for name, fit_head in (("placed", False), ("fitted", True))
    )
    assert placed.manifest and fitted.manifest
    assert placed.manifest.details["fitted_tokens"] == 0 < fitted.manifest.details["fitted_tokens"]
    one, other = (load_file(artifact.path / "model.safetensors") for artifact in (placed, fitted))
    old = load_encoder(base).vocabulary_size
    head = "lm_head.weight" if "lm_head.weight" in one else "model.embed_tokens.weight"
    assert [name for name in one if not torch.equal(one[name], other[name])] == [head]
    assert torch.equal(one[head][:old], other[head][:old])
    ids = torch.tensor([load_encoder(tokenizer).encode(line * 8)])
    losses = []
    for artifact in (placed, fitted):
        with torch.inference_mode():
            losses.append(float(AutoModelForCausalLM.from_pretrained(artifact.path)(ids, labels=ids).loss))
    assert losses[1] < losses[0], losses


def test_a_text_too_short_for_the_fit_is_said(
    pico_model: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time 小镇 was a cat 河.\n" * 3, encoding="utf-8")
    config = ExpandConfig(
        model=str(pico_model), tokenizer=str(tokenizer), text=(str(tmp_path / "text.txt"),), output=tmp_path / "grown"
    )
    assert expand.run(config).result()["fitted_tokens"] == 0
    assert "without a fit: the text is too short" in " ".join(capsys.readouterr().err.split())


def test_text_that_no_start_would_read_is_refused(pico_model: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = ExpandConfig(
        model=str(pico_model), tokenizer=str(tokenizer), init="mean", text=(str(tmp_path),), output=tmp_path / "o"
    )
    with pytest.raises(ConfigError, match="cooccurrence alone"):
        expand.run(config)
    assert not (tmp_path / "o").exists()


def test_a_dry_run_says_what_growing_saves_and_writes_nothing(
    pico_model: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "zh.txt").write_text("小镇小镇河边" * 40, encoding="utf-8")
    (tmp_path / "en.txt").write_text("Once upon a time there was a cat. " * 40, encoding="utf-8")
    config = ExpandConfig(
        model=str(pico_model),
        tokenizer=str(tokenizer),
        text=(str(tmp_path / "zh.txt"), str(tmp_path / "en.txt")),
        output=tmp_path / "grown",
        dry_run=True,
    )
    result = expand.run(config)
    assert isinstance(result, dict) and not (tmp_path / "grown").exists()
    characters = "小镇小镇河边" * 40  # English has no part in the figures
    for key, path in (("base_chars_per_token", pico_model), ("chars_per_token", tokenizer)):
        assert result[key] == round(len(characters) / len(load_encoder(path).encode(characters)), 4)
    assert result["new_rows"] == 5 and 0 < result["seldom_rows"] < 5
    assert result["pays"] and "times" in result["advice"]
