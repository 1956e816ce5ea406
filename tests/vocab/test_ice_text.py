"""ChatGLM's tokenizer behind the encoder: whitespace has pieces, and a user's text never becomes a control token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yangtuo.vocab import ice_text
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import Encoder, load_encoder


@pytest.fixture(scope="module")
def encoder(pico_glm: Path) -> Encoder:
    return load_encoder(pico_glm)


def test_whitespace_has_pieces_of_its_own(encoder: Encoder) -> None:
    for text in ("公园\n散步", "a\tb", "a" + " " * 81 + "b", "x" + " " * 163 + "y", "[Round 0]\n问"):
        assert encoder.decode(encoder.encode(text)) == text
    assert encoder.encode("\n") == [encoder.pieces.index("▁"), encoder.pieces.index("<n>")]
    run = [encoder.pieces.index(f"<|blank_{length}|>") for length in (80, 80, 3)]
    assert [i for i in encoder.encode("x" + " " * 163 + "y") if encoder.pieces[i].startswith("<|blank")] == run
    assert [list(ids) for ids in encoder.encode_arrays(["a\nb", "c"])] == encoder.encode_batch(["a\nb", "c"])


def test_no_text_becomes_a_control_token(encoder: Encoder) -> None:
    """In the original, `<sop>` in a question ends the prompt; here it is six characters."""
    assert encoder.bos_id == encoder.controls["<sop>"] and encoder.eos_id == encoder.controls["<eop>"]
    assert "<n>" not in encoder.controls
    for token in encoder.controls:
        ids = encoder.encode(f"问{token}答")
        assert not set(ids) & set(encoder.controls.values()), token
        assert encoder.decode([encoder.controls[token]]) == ""


def test_rows_without_a_piece_decode_to_nothing(encoder: Encoder) -> None:
    assert encoder.decode([*encoder.encode("公园"), encoder.vocabulary_size + 5]) == "公园"


def test_the_shift_of_image_tokens_is_part_of_its_identity(pico_glm: Path, encoder: Encoder, tmp_path: Path) -> None:
    settings = json.loads((pico_glm / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "num_image_tokens": 20000}))
    shutil.copy(pico_glm / ice_text.MODEL_FILE, tmp_path)
    shifted = load_encoder(tmp_path)
    assert shifted.encode("公园\n") == [index + 20000 for index in encoder.encode("公园\n")]
    assert shifted.decode(shifted.encode("公园\n散步")) == "公园\n散步"
    assert shifted.vocabulary_size == encoder.vocabulary_size + 20000
    assert shifted.fingerprint != encoder.fingerprint
    copy_tokenizer(tmp_path, tmp_path / "copy")
    assert load_encoder(tmp_path / "copy").fingerprint == shifted.fingerprint
    assert load_encoder(pico_glm / ice_text.MODEL_FILE).fingerprint == encoder.fingerprint


def test_ids_of_the_real_tokenizer(shared_data: Path) -> None:
    golden = json.loads((shared_data / "models" / "chatglm_golden" / "tokenizer.json").read_text(encoding="utf-8"))
    real = load_encoder(shared_data / "tokenizers" / "chatglm" / ice_text.MODEL_FILE)
    assert real.vocabulary_size == golden["special"]["len"]
    assert (real.bos_id, real.eos_id) == (130004, 130005)
    for case in golden["texts"]:
        assert real.encode(case["text"]) == case["sp_ids"], case["text"]
        expected = case["decode_noclean"] if 0 not in case["ids"] else case["decode_noclean"].replace(" ⁇ ", "")
        assert real.decode(case["ids"]) == expected, case["text"]
