"""The options of every verb: one frozen dataclass each.

Flags, YAML keys, `--help` and the reference page all come from these classes: a field is an option, its docstring the
help text, the class docstring the command's help. This module imports no heavy library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.options import (
    HOW,
    DataPaths,
    InputPath,
    InputPaths,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    StageConfig,
    Words,
    parse_shard,
    shard_path,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConvertConfig(StageConfig):
    """Turns published weights into a model directory that everything else reads.

    Example: `yangtuo convert --source ~/llama/7B --output models/llama-7b`
    """

    verb: ClassVar[str] = "convert"
    source: InputPath
    """Weights: a directory in Meta's layout (consolidated.*.pth, params.json, tokenizer.model), in Hugging Face's
    layout, a GGUF file, or a hub id."""
    output: Path
    """The model directory to write."""
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    """Number format of the written weights; keep writes that of the source."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig(StageConfig):
    """Learns new pieces for a base tokenizer from a corpus.

    Example: `yangtuo tokenizer train --base models/llama-7b --corpus texts/zh --size 8000 --output pieces`
    """

    verb: ClassVar[str] = "tokenizer train"
    base: InputPath
    """The tokenizer to extend: a directory, a tokenizer.model or a tokenizer.json."""
    corpus: InputPaths
    """Text to learn from: a file or a directory (txt, jsonl, csv, parquet, gz, zst); repeatable."""
    size: Positive
    """How many new pieces to learn."""
    output: Path
    """The directory of learned pieces to write."""
    script: Words = ("Han",)
    """Unicode scripts that new pieces may be made of, beside CJK punctuation where Han is among them; repeatable."""
    sample_bytes: Positive = 200_000_000
    """At most this many bytes of text are read into memory; larger corpora are sampled evenly."""
    dry_run: Annotated[bool, HOW] = False
    """Only say what would be learned and whether expansion is likely to pay."""
    training_tokens: Annotated[Positive | None, HOW] = None
    """With --dry-run: how many tokens of training are planned, so that it says whether they are enough."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerMergeConfig(StageConfig):
    """Joins learned pieces to a base tokenizer; the base's ids never move.

    Example: `yangtuo tokenizer merge --base models/llama-7b --pieces pieces --output tokenizers/llama-zh`
    """

    verb: ClassVar[str] = "tokenizer merge"
    base: InputPath
    """The tokenizer to extend: a directory, a tokenizer.model or a tokenizer.json."""
    pieces: InputPath
    """The pieces: what `yangtuo tokenizer train` wrote, or any SentencePiece model."""
    output: Path
    """The tokenizer directory to write."""
    style: Literal["faithful", "published"] = "faithful"
    """faithful keeps the base's segmentation of everything else; published follows Chinese-LLaMA's score-0 recipe."""
    script: Words = ("Han",)
    """Unicode scripts that new pieces may be made of (faithful style); repeatable."""
    add_token: Words = ()
    """A token to append after the pieces, such as [PAD]; repeatable."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerAuditConfig(StageConfig):
    """Measures a tokenizer against its base: compression, changed lines, dead pieces, engines that disagree.

    Example: `yangtuo tokenizer audit --tokenizer tokenizers/llama-zh --base llama-7b --text texts --output audit`
    """

    verb: ClassVar[str] = "tokenizer audit"
    tokenizer: InputPath
    """The tokenizer to look at: a directory, a tokenizer.model or a tokenizer.json."""
    base: InputPath
    """The tokenizer that it was made from."""
    text: InputPaths
    """Texts to measure on, as [NAME=]PATH: a file or a directory, in the base's language and in the new one;
    repeatable."""
    output: Path | None = None
    """The directory for audit.json and index.html; without it the findings are only printed."""
    script: Words = ("Han",)
    """Unicode scripts of the new pieces; lines of other scripts should not have changed; repeatable."""
    training_tokens: Positive | None = None
    """How many tokens of training are planned, so that the advice says whether they are enough."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExpandConfig(StageConfig):
    """Grows a model's embedding and head to a tokenizer's pieces.

    Example: `yangtuo expand --model models/llama-7b --tokenizer tokenizers/llama-zh --output models/llama-7b-zh`
    """

    verb: ClassVar[str] = "expand"
    model: InputPath
    """The model to grow: a directory or a hub id."""
    tokenizer: InputPath
    """The tokenizer whose new pieces need rows; its old ids must be the model's."""
    output: Path
    """The model directory to write."""
    init: Literal["cooccurrence", "subtoken-mean", "exponential", "mean", "random"] | None = None
    """How new rows start: by the company that their tokens keep in --text; as the mean of the pieces that the base
    would have used; the same with the last of them weighing most in the embedding and the first in the head; as the
    mean of all rows; or random. When not given, cooccurrence with --text and subtoken-mean without."""
    text: InputPaths = ()
    """Texts in the new language and in the base's own, for cooccurrence, such as those to train on; repeatable."""
    fit_head: bool = True
    """With cooccurrence: fit the head's new rows to the states that the model reaches in --text: one pass over at most
    16,000 tokens, a layer in memory at a time."""
    seed: int = 0
    """Seed of random rows, of the factors of cooccurrence and of the fit."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PrepareConfig(StageConfig):
    """Turns text into blocks of tokens on disk.

    Example: `yangtuo prepare --source zh=texts/zh --source en=texts/en:0.2 --tokenizer llama-7b-zh --output data`
    """

    verb: ClassVar[str] = "prepare"
    source: DataPaths
    """Text as [NAME=]PATH[:WEIGHT]: a file or directory; a weight of 0.2 takes a fifth of it, 2 takes it twice;
    repeatable. NAME (zh, en) labels the source in every report."""
    tokenizer: InputPath
    """The tokenizer: a directory (a model's will do) or a bare file."""
    output: Path
    """The dataset directory to write."""
    block_size: Positive = 512
    """Tokens in a training block."""
    held_out: Share = 0.02
    """Share of each source's documents kept apart to measure bits per byte."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What one document of a text file is: the file, a paragraph between empty lines, or a line."""
    clean: bool = True
    """Mend what scanning and page layout did to a text: control characters, blanks inside Chinese, page numbers."""
    dedup: Literal["none", "exact", "near"] = "exact"
    """Which repeated documents are removed: none, equal ones, or those that share most of their text too."""
    decontaminate: DataPaths = ()
    """Evaluation sets (txt, csv, json, jsonl, parquet) whose passages are removed from the text; repeatable."""
    seed: int = 0
    """Seed of the held-out choice and of the sampling by weight."""
    shard: Annotated[str | None, HOW] = None
    """I/N makes the I-th of N shares of the work, as OUTPUT.shard-I-of-N, on any machine; with all of them beside the
    output, the same command without --shard joins them."""
    dry_run: Annotated[bool, HOW] = False
    """Write nothing: show figures and samples of blocks as the model sees them, from the beginning of each source."""

    def output_path(self) -> Path:
        """The dataset, or the share of it."""
        return self.output if self.shard is None else shard_path(self.output, *parse_shard(self.shard))

    def input_references(self) -> dict[str, tuple[str, ...]]:
        """All inputs; a share does not depend on all of the text, and its parts know what they were made of."""
        references = super().input_references()
        return {name: value for name, value in references.items() if self.shard is None or name != "source"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """What pretrain and sft share."""

    model: InputPath
    """The model to train: a directory or a hub id."""
    output: Path
    """The adapter directory to write."""
    adapter: InputPath | None = None
    """An earlier adapter of the same model to go on from; its own rank, alpha, variant and embeddings then hold."""
    embeddings: Literal["full", "new", "frozen"] | None = None
    """Which rows of embedding and head are trained: all, those of new pieces only, or none. When not given, the new
    ones where `yangtuo expand` made some, else all."""
    rank: Positive = 64
    """Rank of the LoRA matrices."""
    alpha: PositiveFloat = 128
    """LoRA's alpha: updates are scaled by alpha / rank, or by alpha / sqrt(rank) with rslora."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """How LoRA's update is scaled and split: plain, rank-stabilised, or weight-decomposed."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate, after 3 % of warm-up."""
    embedding_learning_rate: PositiveFloat | None = None
    """Peak learning rate of embedding and head. When not given: for rows as expand placed them 15 % (head 4 %) of the
    matrix's deviation, for new rows trained before 2.5 times the rest, for all rows the same as the rest."""
    schedule: Annotated[Literal["linear", "cosine"], HOW] = "linear"
    """How learning rates decay to zero after the warm-up."""
    epochs: PositiveFloat = 1.0
    """Passes over the data."""
    batch_size: Positive = 8
    """Blocks in an optimizer step, over all processes: the result does not depend on how many there are."""
    micro_batch: Annotated[Positive | None, HOW] = None
    """Blocks in one forward pass of one process; fewer need less memory. Its whole share when not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    """Arithmetic of the forward pass; auto takes bfloat16 where the device has it, nf4 also stores the frozen weights
    in 4 bits (QLoRA, needs bitsandbytes), float16 needs a GPU. Trained tensors are float32."""
    gradient_checkpointing: Annotated[bool, HOW] = False
    """Compute each layer again in the backward pass: a third slower, a fraction of the memory."""
    sharding: Annotated[Literal["none", "zero2", "zero3", "fsdp2"], HOW] = "none"
    """Under torchrun or accelerate: what the processes share; none is plain data parallelism."""
    bound: Words = ()
    """NAME=SHARE: stop where held-out bits per byte of source NAME are worse than before by more than SHARE, such as
    en=0.05; repeatable."""
    keep: Literal["last", "best"] = "last"
    """Which adapter is kept: that of the last step, or of the best held-out measurement."""
    save_every: Positive = 500
    """Optimizer steps between checkpoints, and between held-out measurements."""
    seed: int = 0
    """Seed of initialisation and of the order of blocks."""
    tensorboard: Annotated[Path | None, HOW] = None
    """A directory for TensorBoard's curves, outside the output."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Continues pre-training: LoRA on all linear layers, with embeddings and head trained.

    Example: `yangtuo pretrain --model models/llama-7b-zh --data data --output adapters/pretrain`
    """

    verb: ClassVar[str] = "pretrain"
    data: InputPath
    """The dataset that `yangtuo prepare` wrote with the model's tokenizer."""
    rows_first: Share = 0.0
    """Share of the steps, at the beginning, in which embedding and head learn alone."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainingConfig):
    """Fine-tunes on conversations; the loss counts answers only.

    Example: `yangtuo sft --model models/llama-7b-zh --data alpaca_zh.json --template alpaca --output adapters/sft`
    """

    verb: ClassVar[str] = "sft"
    data: DataPaths
    """Conversations as PATH[:WEIGHT] (json, jsonl, csv, parquet, gz, zst), shaped as Alpaca, instruct/query/answer,
    PromptCBLUE, ShareGPT or messages; a weight of 0.5 takes half of the usable rows, 2 takes them twice; repeatable."""
    template: str = "alpaca"
    """How prompts are written: alpaca, alpaca-2, chatml, llama-3, or model for the model's own."""
    max_length: Positive = 512
    """Tokens in a block; longer conversations are cut, never the end of an answer."""
    replay: InputPath | None = None
    """A dataset that `yangtuo prepare` wrote with --max-length as its block size, as PATH[:WEIGHT]: so many blocks of
    text are read with each block of conversations, one if not given, and its held-out documents are measured."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate, after 3 % of warm-up."""
    epochs: PositiveFloat = 3.0
    """Passes over the conversations."""
    dry_run: Annotated[bool, HOW] = False
    """Write nothing: show what became of the rows, samples of the blocks as the model sees them, and the plan."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MergeConfig(StageConfig):
    """Folds adapters into their base, in order, and writes a whole model.

    Example: `yangtuo merge --base models/llama-7b-zh --adapter adapters/pretrain --output models/llama-7b-zh-merged`
    """

    verb: ClassVar[str] = "merge"
    base: InputPath
    """The model that the first adapter was trained on: a directory or a hub id."""
    adapter: InputPaths
    """Adapters in the order of their training: PEFT directories, .zip files or hub ids; repeatable."""
    output: Path
    """The model directory to write."""
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    """Number format of the written weights; keep writes that of the base."""
    shard_size: Annotated[str, HOW] = "2GB"
    """Largest size of one weight file, such as 500MB or 2GB."""
    prove: Annotated[str | None, HOW] = None
    """A text on which merged and unmerged logits are compared (or, where memory lacks, a sample of tensors)."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """Writes a model for other programs: GGUF for llama.cpp, or Meta's own layout.

    Example: `yangtuo export --model models/llama-7b-zh-chat --format gguf --quantize q8_0 --output exports/q8`
    """

    verb: ClassVar[str] = "export"
    model: InputPath
    """The model to write: a directory or a hub id."""
    format: Literal["gguf", "meta"]
    """gguf for llama.cpp, or meta for consolidated.*.pth and params.json."""
    output: Path
    """The directory to write; with gguf it holds model.gguf."""
    quantize: Literal["keep", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "keep"
    """Number format of the matrices in GGUF; keep writes that of the model."""
    shards: Positive = 1
    """Number of consolidated.*.pth in Meta's layout: model-parallel ranks."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StageConfig):
    """Measures models: bits per byte of text, or questions answered.

    Example: `yangtuo evaluate --model base --model adapted --suite bits-per-byte --data zh=held-out-zh --output scores`
    """

    verb: ClassVar[str] = "evaluate"
    model: InputPaths
    """A model as [NAME=]PATH: a directory or a hub id; repeatable, for a comparison."""
    suite: Literal["bits-per-byte", "questions"]
    """bits-per-byte reads text; questions asks each question of a JSON file and looks for its answers in the reply."""
    data: InputPaths
    """What to measure on, as [NAME=]PATH: text for bits-per-byte, JSON for questions; repeatable."""
    output: Path
    """The directory of results to write."""
    max_new_tokens: Positive = 64
    """Longest reply, in tokens (questions)."""
    batch_size: Annotated[Positive, HOW] = 16
    """Sequences in one forward pass."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChatConfig(StageConfig):
    """Talks with a model in the terminal.

    Example: `yangtuo chat --model models/llama-7b-zh-chat --once 你好`
    """

    verb: ClassVar[str] = "chat"
    model: InputPath
    """The model: a directory or a hub id."""
    adapter: InputPath | None = None
    """A PEFT adapter to put on the model."""
    engine: Literal["auto", "transformers"] = "auto"
    """What computes the replies."""
    once: str | None = None
    """Say this, print the reply and end."""
    max_new_tokens: Positive = 256
    """Longest reply, in tokens."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token every time; higher values choose more freely."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InspectConfig(StageConfig):
    """Says what a directory is: kind, architecture, rows, pieces, lineage.

    Example: `yangtuo inspect models/llama-7b-zh`
    """

    verb: ClassVar[str] = "inspect"
    path: InputPath = field(kw_only=False)
    """An artifact, a model or adapter directory, or a hub id."""
    verify: Annotated[bool, Parameter(negative="")] = False
    """Hash all files again and compare with the manifest."""
    sums: InputPath | None = None
    """Compare with the SHA-256 sums of this file instead, as others publish them: lines with a sum and a file name."""


STAGES: dict[str, type[StageConfig]] = {
    stage.verb: stage
    for stage in (
        ConvertConfig,
        TokenizerTrainConfig,
        TokenizerMergeConfig,
        TokenizerAuditConfig,
        ExpandConfig,
        PrepareConfig,
        PretrainConfig,
        SftConfig,
        MergeConfig,
        ExportConfig,
        EvaluateConfig,
    )
}
"""Verbs that write an artifact and can stand in a recipe."""

TOOLS: dict[str, type[StageConfig]] = {tool.verb: tool for tool in (ChatConfig, InspectConfig)}
"""Verbs that only read."""
