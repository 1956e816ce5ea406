"""Fixtures of the whole suite: real test data where it lies, and pico tokenizers and models built in memory."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent

SENTENCES = (
    "Once upon a time there was a little girl named Lily, and she lived near the river with her mother.",
    "The cat sat on the mat and looked at the rain; the dog slept by the door until the evening came.",
    "Every morning the old man walked to the market, bought three apples and gave one of them to the boy.",
    "To install the package, open a terminal, type the command and wait until the process has ended.",
    "If the file does not exist, the program writes an error message and stops with a status of two.",
    "What is the name of the river that runs through the town? The river is called the Green River.",
    "The teacher said that the children should read the story again and write down the words they knew.",
    "He had never seen such a large fish before, and he told everyone in the village about it.",
    "In winter the mountains are white with snow, and in summer the fields are full of yellow flowers.",
    "She asked him where the keys were, but he only laughed and pointed at the table in the kitchen.",
    "Numbers such as 1, 20, 365 and 1998 are written with digits; dates look like 2024-05-17.",
    "def add(left, right):\n    return left + right  # the sum of both",
    "They say 你好 to greet, 谢谢 to thank and 再见 to part; 中国 is written with two characters.",
)
"""What the pico tokenizers learn from: English, digits, a line of code and a few Chinese characters."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real third-party tokenizers, models and texts that are no part of the project."""
    path = PROJECT_ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the real test data at {path}, which is absent here")
    return path


@pytest.fixture(scope="session")
def pico_sentencepiece() -> bytes:
    """A SentencePiece BPE model of 400 pieces, trained with LLaMA's settings, serialized."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in SENTENCES for _ in range(3)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        character_coverage=0.995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def pico_tokenizer(pico_sentencepiece: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `pico_sentencepiece`; read-only."""
    from yangtuo.vocab.directory import write_sentencepiece

    directory = tmp_path_factory.mktemp("pico") / "tokenizer"
    write_sentencepiece(directory, pico_sentencepiece)
    return directory


@pytest.fixture(scope="session")
def pico_model(pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama of 2 layers, hidden 32, 4 query and 2 key-value heads, with its tokenizer; read-only."""
    return write_pico_model(tmp_path_factory.mktemp("pico") / "model", pico_tokenizer, tied=False)


@pytest.fixture(scope="session")
def pico_tied_model(pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pico_model`, with one matrix for embedding and head; read-only."""
    return write_pico_model(tmp_path_factory.mktemp("pico") / "tied-model", pico_tokenizer, tied=True)


@pytest.fixture(scope="session")
def pico_byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a byte-level BPE tokenizer of 400 ids in GPT-2's manner, with ChatML's tokens; read-only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for line in SENTENCES for _ in range(3)], trainer)
    directory = tmp_path_factory.mktemp("pico") / "byte-level"
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 512,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return directory


def write_pico_model(directory: Path, tokenizer: Path, *, tied: bool) -> Path:
    """Writes a random Llama of the pico shape whose rows are exactly the pieces of the SentencePiece `tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from yangtuo.vocab.directory import copy_tokenizer
    from yangtuo.vocab.encoding import load_encoder

    encoder = load_encoder(tokenizer)
    config = LlamaConfig(
        vocab_size=encoder.vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=encoder.bos_id,
        eos_token_id=encoder.eos_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)
    return directory
