"""Samples must show what the model is trained on, not what the author of the data hoped for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from yangtuo import console
from yangtuo.data.blocks import BlockDataset, write_blocks, write_packed
from yangtuo.data.preview import Sample, render, take_samples
from yangtuo.data.template import Message, get_template
from yangtuo.vocab.encoding import Encoder, load_encoder


def packed(directory: Path, encoder: Encoder, *answers: str, template: str = "alpaca") -> BlockDataset:
    form = get_template(template, None)
    rows = [form.encode_conversation(encoder, [Message("user", "Hi"), Message("assistant", text)]) for text in answers]
    size = encoder.vocabulary_size
    write_packed(directory, rows, block_size=256, vocabulary_size=size, padding_id=encoder.eos_id or 0)
    return BlockDataset(directory)


def printed(samples: list[Sample], num_pieces: int = 400) -> str:
    stream = io.StringIO()
    Console(file=stream, soft_wrap=True, width=4000).print(console.styled(render(samples, num_pieces)))
    return stream.getvalue()


def test_documents_masks_and_padding_of_a_packed_block(pico_tokenizer: Path, tmp_path: Path) -> None:
    """Whoever looks at a sample must see where an answer is learned and that its EOS is, too."""
    encoder = load_encoder(pico_tokenizer)
    blocks = packed(tmp_path, encoder, "The cat", "The dog sat")
    [sample] = take_samples(blocks, encoder, 3)
    *documents, padding = sample.stretches
    assert [stretch.is_padding for stretch in sample.stretches] == [False, False, True]
    assert sum(len(stretch.pieces) for stretch in sample.stretches) == 256
    for document in documents:
        assert [document.pieces[0].text, document.pieces[0].kind, document.pieces[0].learned] == [
            "⟦<s>⟧",
            "control",
            False,
        ]
        assert [document.pieces[-1].text, document.pieces[-1].learned] == ["⟦</s>⟧", True]
    answers = ["".join(piece.text for piece in document.pieces if piece.learned) for document in documents]
    assert answers == ["The▁dog▁sat⟦</s>⟧", "The▁cat⟦</s>⟧"]
    assert padding.num_learned == 0
    shown = printed([sample])
    assert shown.count("── document") == 2
    assert f"── padding: {len(padding.pieces)} tokens, 0 learned ──\n⟦</s>⟧ × {len(padding.pieces)}" in shown
    plain = shown.replace("│", "")
    assert "▸The▁dog▁sat⟦</s>⟧◂" in plain and "▸The▁cat⟦</s>⟧◂" in plain


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
def test_a_character_cut_into_bytes_shows_bytes_and_itself(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Neither family knows the character: three bytes, which decoded alone are three times U+FFFD."""
    encoder = load_encoder(request.getfixturevalue(family))
    [sample] = take_samples(packed(tmp_path, encoder, "驼"), encoder, 1)
    learned = [piece for piece in sample.stretches[0].pieces if piece.learned]
    assert [(piece.text, piece.kind) for piece in learned[-4:-1]] == [
        ("E9", "bytes"),
        ("A9", "bytes"),
        ("BC=驼", "bytes"),
    ]


def test_bytes_that_are_no_character_show_as_bytes(pico_tokenizer: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    ids = [encoder.bos_id, *(encoder.pieces.index(f"<0x{byte}>") for byte in ("E9", "A9", "0A", "FF")), encoder.eos_id]
    block = {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids), "position_ids": torch.arange(len(ids))}
    [sample] = take_samples([block], encoder, 1)
    assert [piece.text for piece in sample.stretches[0].pieces] == ["⟦<s>⟧", "E9", "A9", "↵", "FF", "⟦</s>⟧"]


def test_text_that_looks_like_control_tokens_or_markup_is_only_text(pico_byte_level: Path, tmp_path: Path) -> None:
    """A user's `<|im_end|>`, `[red]` or terminal escape must neither deceive the reader nor reach the terminal."""
    encoder = load_encoder(pico_byte_level)
    answer = "<|im_end|>[red]x[/red]:smile:\x1b[31m\u202e"
    samples = take_samples(packed(tmp_path, encoder, answer, template="chatml"), encoder, 1)
    learned = [piece for piece in samples[0].stretches[0].pieces if piece.learned]
    controls = [piece.text for piece in learned if piece.kind == "control"]
    assert controls == ["⟦<|im_end|>⟧"]
    shown = printed(samples)
    text = shown.split("▸")[2].split("◂")[0].replace("│", "")
    assert text.startswith("<|im_end|>[red]x[/red]:smile:\\x1b[31m") and text.endswith("=\\u202e⟦<|im_end|>⟧")
    assert "\x1b" not in shown and "\u202e" not in shown
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system="standard").print(console.styled(render(samples)))
    assert "\x1b[31m" not in stream.getvalue(), "red is none of our colours"
    assert "\x1b[32m" in stream.getvalue(), "learned pieces are green"


def test_long_documents_are_shown_by_their_ends_and_blocks_are_spread(pico_tokenizer: Path, tmp_path: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    assert encoder.bos_id is not None and encoder.eos_id is not None
    document = [encoder.bos_id, *encoder.encode("cat " * 1000), encoder.eos_id]
    write_blocks(
        tmp_path, [document], block_size=100, vocabulary_size=encoder.vocabulary_size, padding_id=encoder.eos_id
    )
    blocks = BlockDataset(tmp_path)
    samples = take_samples(blocks, encoder, 4)
    assert [sample.index for sample in samples] == [number * len(blocks) // 4 for number in range(4)]
    assert all(not stretch.is_padding for sample in samples for stretch in sample.stretches)
    shown = printed(samples, num_pieces=30)
    assert shown.count("… 70 pieces …") == 4
    assert samples[0].to_dict()["stretches"][0]["pieces"][0] == {
        "id": encoder.bos_id,
        "text": "⟦<s>⟧",
        "kind": "control",
        "learned": False,
    }
