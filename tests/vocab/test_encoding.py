"""What every other area relies on: ids from an encoder, the same whoever reads the files, and never a control token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from yangtuo.errors import FileError
from yangtuo.vocab.directory import copy_tokenizer, write_sentencepiece
from yangtuo.vocab.encoding import Family, load_encoder

from .texts import AWKWARD, assert_same_ids, random_texts


def test_other_tools_get_sentencepiece_ids_on_awkward_texts(pico_tokenizer: Path) -> None:
    assert_same_ids(pico_tokenizer, AWKWARD + random_texts(0, 2000))


@pytest.mark.parametrize(
    "name",
    ["tokenizers/llama/tokenizer.model", "tokenizers/mistral/tokenizer.model", "models/stories260K/tokenizer.model"],
)
def test_published_models_get_sentencepiece_ids(shared_data: Path, tmp_path: Path, name: str) -> None:
    """transformers' own conversion differs on runs of blanks and leading blanks."""
    write_sentencepiece(tmp_path, (shared_data / name).read_bytes())
    book = (shared_data / "corpora/en").glob("*.txt")
    lines = [line for file in sorted(book) for line in file.read_text(encoding="utf-8").split("\n")[:400]]
    assert_same_ids(tmp_path, AWKWARD + random_texts(1, 1500) + lines)


@pytest.mark.parametrize("text", ["</s>", "<s>", "<unk>", "a</s>b<s>", "<0x41>"])
def test_text_never_becomes_a_control_token(pico_tokenizer: Path, text: str) -> None:
    encoder = load_encoder(pico_tokenizer)
    ids = encoder.encode(text) + encoder.encode(text, prefix=False)
    assert not {0, 1, 2} & set(ids)
    assert encoder.decode(encoder.encode(text)) == text


def test_text_never_becomes_a_control_token_in_a_byte_level_tokenizer(pico_byte_level: Path, tmp_path: Path) -> None:
    """A token listed as ordinary, as some published tokenizers list <tool_call>, is a control token too."""
    shutil.copytree(pico_byte_level, tmp_path / "copy")
    content = json.loads((tmp_path / "copy/tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": 400, "content": "<tool_call>", "special": False}
    )
    (tmp_path / "copy/tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    encoder = load_encoder(tmp_path / "copy")
    text = "a<|im_end|>b<|endoftext|><tool_call>"
    ids = encoder.encode(text)
    assert encoder.controls == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<tool_call>": 400}
    assert not set(encoder.controls.values()) & set(ids)
    assert encoder.decode(ids) == text
    assert (encoder.bos_id, encoder.eos_id, encoder.control_id("<|im_start|>")) == (0, 2, 1)


def test_prefix_off_leaves_out_the_dummy_blank_only(pico_tokenizer: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    with_blank = [encoder.pieces[index] for index in encoder.encode("the cat")]
    without = [encoder.pieces[index] for index in encoder.encode("the cat", prefix=False)]
    assert "".join(with_blank) == "\u2581the\u2581cat"
    assert "".join(without) == "the\u2581cat"


def test_a_bare_json_file_gives_the_ids_of_the_directory(pico_tokenizer: Path) -> None:
    """Published models often ship tokenizer.json alone."""
    encoder, fast = load_encoder(pico_tokenizer), load_encoder(pico_tokenizer / "tokenizer.json")
    assert fast.family is Family.SENTENCEPIECE
    for text in AWKWARD:
        assert fast.encode(text) == encoder.encode(text), text
    assert fast.encode("the cat", prefix=False) == encoder.encode("the cat", prefix=False)
    assert fast.split_piece("\u2581the") == encoder.split_piece("\u2581the")


def test_batches_equal_single_texts(pico_tokenizer: Path, pico_byte_level: Path) -> None:
    for path in (pico_tokenizer, pico_byte_level):
        encoder = load_encoder(path)
        assert encoder.encode_batch(AWKWARD, 2) == [encoder.encode(text) for text in AWKWARD]
        assert encoder.encode_batch([]) == []


def test_decode_drops_control_tokens(pico_tokenizer: Path, pico_byte_level: Path) -> None:
    for path in (pico_tokenizer, pico_byte_level):
        encoder = load_encoder(path)
        assert encoder.bos_id is not None and encoder.eos_id is not None
        ids = [encoder.bos_id, *encoder.encode("Once upon 你好"), encoder.eos_id]
        assert encoder.decode(ids) == "Once upon 你好"


def test_identity_is_the_content_not_the_file(pico_tokenizer: Path, pico_byte_level: Path, tmp_path: Path) -> None:
    fingerprint = load_encoder(pico_tokenizer).fingerprint
    assert load_encoder(pico_tokenizer / "tokenizer.model").fingerprint == fingerprint
    copy_tokenizer(pico_tokenizer / "tokenizer.model", tmp_path / "bare")
    assert load_encoder(tmp_path / "bare").fingerprint == fingerprint
    other = tmp_path / "other"
    shutil.copytree(pico_byte_level, other)
    assert load_encoder(other).fingerprint == load_encoder(pico_byte_level).fingerprint
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_encoder(other).fingerprint != load_encoder(pico_byte_level).fingerprint


def test_tokens_beside_a_sentencepiece_model_are_control_tokens(pico_tokenizer: Path, tmp_path: Path) -> None:
    """Chat models add <|im_end|> to tokenizer.json and leave tokenizer.model as it was."""
    directory = tmp_path / "chat"
    shutil.copytree(pico_tokenizer, directory)
    fast = Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.add_special_tokens(["<|im_end|>"])
    fast.save(str(directory / "tokenizer.json"))
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_end|>"}))
    encoder = load_encoder(directory)
    assert encoder.vocabulary_size == 401 and encoder.eos_id == 400 == encoder.control_id("<|im_end|>")
    assert 400 not in encoder.encode("<|im_end|>")
    assert encoder.decode([*encoder.encode("a cat"), 400]) == "a cat"
    assert encoder.fingerprint != load_encoder(pico_tokenizer).fingerprint


def test_tiktoken_lines_under_the_name_of_a_model_are_passed_over(shared_data: Path) -> None:
    """Llama 3 ships tiktoken's file as tokenizer.model."""
    encoder = load_encoder(shared_data / "tokenizers/llama3")
    assert encoder.family is Family.BYTE_LEVEL and encoder.vocabulary_size == 128_256
    assert encoder.control_id("<|eot_id|>") == 128_009
    assert encoder.decode(encoder.encode("<|eot_id|> 你好")) == "<|eot_id|> 你好"


def test_files_that_are_no_tokenizer_are_refused(pico_sentencepiece: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.model").write_bytes(pico_sentencepiece[: len(pico_sentencepiece) // 2])
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n##s\n", encoding="utf-8")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    for name in ("absent", "empty", "cut.model", "vocab.txt", "list.json"):
        with pytest.raises(FileError, match=name):
            load_encoder(tmp_path / name)
