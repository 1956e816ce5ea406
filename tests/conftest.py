"""Fixtures of the whole suite: real test data where it lies, and pico tokenizers and models built in memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
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


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What engines make on the fly goes into a cache of the tests' own."""
    os.environ["YANGTUO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
    return train_pico_sentencepiece()


def train_pico_sentencepiece() -> bytes:
    """What `pico_sentencepiece` gives."""
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


_GLM_CONTROLS = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
_GLM_CHINESE = (
    "你现在是一个实体识别模型，你需要提取文本里面的人名、地名、机构名，如果存在结果，返回实体_实体类型。",
    "北京大学的李明教授昨天到上海参加会议，会议由中国科学院主办。",
    "今天天气很好，我们去公园散步吧。问：你好 答：你好！有什么可以帮你？",
    "没有结果的时候，回答没有。王芳住在广州，她在一家银行工作。",
)


@pytest.fixture(scope="session")
def pico_ice_model() -> bytes:
    """A SentencePiece model in the manner of ChatGLM's `ice_text.model`, of some 600 pieces, serialized."""
    return _train_ice_model(SENTENCES + _GLM_CHINESE, 700)


@pytest.fixture(scope="session")
def train_ice_model() -> Callable[..., bytes]:
    """Function that trains another like `pico_ice_model`, of at most so many pieces, from lines."""
    return _train_ice_model


def _train_ice_model(lines: Sequence[str], size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines for _ in range(3)]),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        unk_surface=" \u2047 ",
        pad_id=3,
        control_symbols=_GLM_CONTROLS,
        user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 81))],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def pico_glm(pico_ice_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatGLM-6B directory as published, but small: files that name code, two .bin shards; read-only."""
    return _write_pico_glm(tmp_path_factory.mktemp("pico") / "chatglm", pico_ice_model)


@pytest.fixture(scope="session")
def write_pico_glm() -> Callable[..., Path]:
    """Function that writes another directory like `pico_glm`."""
    return _write_pico_glm


def _write_pico_glm(directory: Path, ice_model: bytes, *, num_layers: int = 2, hidden: int = 32) -> Path:
    """Writes a random ChatGLM of hidden 32 and 4 heads with more rows than pieces, and the published files' keys."""
    import sentencepiece
    import torch

    from yangtuo.models.chatglm.config import ChatGLMConfig
    from yangtuo.models.chatglm.modeling import ChatGLMForConditionalGeneration

    pieces = sentencepiece.SentencePieceProcessor(model_proto=ice_model)
    ids = {
        "bos_token_id": pieces.piece_to_id("<sop>"),
        "eos_token_id": pieces.piece_to_id("<eop>"),
        "mask_token_id": pieces.piece_to_id("[MASK]"),
        "gmask_token_id": pieces.piece_to_id("[gMASK]"),
        "pad_token_id": 3,
    }
    shape = {"hidden_size": hidden, "inner_hidden_size": 4 * hidden, "num_layers": num_layers, "num_attention_heads": 4}
    values = {
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        },
        **ids,
        **shape,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": pieces.get_piece_size() + 8,
    }
    settings = {
        "name_or_path": "THUDM/chatglm-6b",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "ice_text.model").write_bytes(ice_model)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = ChatGLMForConditionalGeneration(ChatGLMConfig.from_dict(values))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layernorm" not in name:  # frozen rows this long let logits tell pieces apart
                    parameter.normal_(0, 0.5 if "embeddings" in name else 0.1)
    tensors = {
        name: tensor.clone() if "layernorm" in name else tensor.half() for name, tensor in model.state_dict().items()
    }
    for index in range(num_layers):
        tensors[f"transformer.layers.{index}.attention.rotary_emb.inv_freq"] = torch.ones(2).half()
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, directory / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file in shards for name in shards[file]}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory
