"""Trains the embedded base: the small English Llama that the quickstart teaches Chinese.

A developer's script, not a verb: users get its result as package data under `quickstart/base`, in the layout in
which Meta publishes LLaMA (`consolidated.00.pth`, `params.json`, `tokenizer.model`). Run it from the repository root:

    python -m yangtuo.quickstart.train_base --corpus ../shared/data/corpora/en --output src/yangtuo/quickstart/base

It learns a SentencePiece BPE vocabulary with LLaMA's own trainer settings (identity normaliser, byte fallback, split
digits), trains in bfloat16 autocast, and writes beside the weights `metrics.json`: bits per byte on held-out text,
next to those of a byte 5-gram model that saw the same training text. It knows nothing of stages or artifacts.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BLOCK_SIZE = 512
BATCH_SIZE = 8
SPLIT_BYTES = 20_000  # text is cut into stretches of this many characters; every 20th is held out
HELD_OUT_EVERY = 20


def split_corpus(directory: Path) -> tuple[list[str], list[str]]:
    """Splits every `*.txt` below `directory` into stretches at line ends; returns (training, held-out) stretches."""
    training: list[str] = []
    held_out: list[str] = []
    for path in sorted(directory.glob("*.txt")):
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
        stretches, stretch, size = [], [], 0
        for line in text.splitlines(keepends=True):
            stretch.append(line)
            size += len(line)
            if size >= SPLIT_BYTES:
                stretches.append("".join(stretch))
                stretch, size = [], 0
        if stretch:
            stretches.append("".join(stretch))
        for index, piece in enumerate(stretches):
            (held_out if index % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 else training).append(piece)
    return training, held_out


def train_vocabulary(texts: list[str], size: int) -> bytes:
    """Returns a serialized SentencePiece BPE model with LLaMA's trainer settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines() if line.strip()),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9999,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=2,
        minloglevel=1,
    )
    return model.getvalue()


def five_gram_bits_per_byte(training: list[str], held_out: list[str]) -> float:
    """Bits per byte of an interpolated (Witten-Bell) byte 5-gram model: what mere counting reaches."""
    counts: list[dict[bytes, Counter[int]]] = [defaultdict(Counter) for _ in range(5)]
    for text in training:
        data = text.encode()
        for order in range(5):
            table = counts[order]
            for index in range(order, len(data)):
                table[data[index - order : index]][data[index]] += 1
    bits, num_bytes = 0.0, 0
    for text in held_out:
        data = text.encode()
        for index, byte in enumerate(data):
            probability = 1 / 256
            for order in range(min(4, index) + 1):
                followers = counts[order].get(data[index - order : index])
                if followers:
                    total, kinds = followers.total(), len(followers)
                    probability = (followers[byte] + kinds * probability) / (total + kinds)
            bits -= math.log2(probability)
        num_bytes += len(data)
    return bits / num_bytes


def encode_blocks(tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> torch.Tensor:
    """Tokens of all stretches, BOS before each, cut into int64 blocks of shape (num_blocks, BLOCK_SIZE + 1)."""
    ids = [token for text in texts for token in [1, *tokenizer.encode(text)]]
    usable = (len(ids) - 1) // BLOCK_SIZE
    return torch.tensor(ids[: usable * BLOCK_SIZE + 1]).unfold(0, BLOCK_SIZE + 1, BLOCK_SIZE)


@torch.no_grad()
def model_bits_per_byte(
    model: LlamaForCausalLM, tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> float:
    """Bits per byte of `texts`, each read from its start in windows of BLOCK_SIZE."""
    model.eval()  # type: ignore[no-untyped-call]
    bits, num_bytes = 0.0, 0
    for text in texts:
        ids = torch.tensor([1, *tokenizer.encode(text)])
        for start in range(0, len(ids) - 1, BLOCK_SIZE):
            window = ids[start : start + BLOCK_SIZE + 1]
            logits = model(window[None, :-1]).logits[0].float()
            bits += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item() / math.log(2)
        num_bytes += len(text.encode())
    model.train()
    return bits / num_bytes


def meta_state(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under Meta's names, rotary halves interleaved as in Meta's code, bfloat16."""
    config: Any = model.config

    def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
        rows, columns = weight.shape
        return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)

    source = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    state = {
        "tok_embeddings.weight": source["model.embed_tokens.weight"],
        "norm.weight": source["model.norm.weight"],
        "output.weight": source["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        hf, meta = f"model.layers.{layer}.", f"layers.{layer}."
        state[meta + "attention.wq.weight"] = interleave(
            source[hf + "self_attn.q_proj.weight"], config.num_attention_heads
        )
        state[meta + "attention.wk.weight"] = interleave(
            source[hf + "self_attn.k_proj.weight"], config.num_key_value_heads
        )
        state[meta + "attention.wv.weight"] = source[hf + "self_attn.v_proj.weight"]
        state[meta + "attention.wo.weight"] = source[hf + "self_attn.o_proj.weight"]
        state[meta + "feed_forward.w1.weight"] = source[hf + "mlp.gate_proj.weight"]
        state[meta + "feed_forward.w2.weight"] = source[hf + "mlp.down_proj.weight"]
        state[meta + "feed_forward.w3.weight"] = source[hf + "mlp.up_proj.weight"]
        state[meta + "attention_norm.weight"] = source[hf + "input_layernorm.weight"]
        state[meta + "ffn_norm.weight"] = source[hf + "post_attention_layernorm.weight"]
    return {name: tensor.clone() for name, tensor in state.items()}


def train(
    model: LlamaForCausalLM, blocks: torch.Tensor, num_steps: int, learning_rate: float, report: Callable[[int], None]
) -> None:
    """AdamW, linear warm-up, cosine decay to a tenth; a new permutation of the blocks each epoch."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 100, 0.1 + 0.45 * (1 + math.cos(math.pi * step / num_steps))),
    )
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []
    started = time.time()
    for step in range(num_steps):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(blocks), generator=generator).tolist()
        batch = blocks[[order.pop() for _ in range(BATCH_SIZE)]]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            speed = (step + 1) * BATCH_SIZE * BLOCK_SIZE / (time.time() - started)
            print(f"step {step + 1}/{num_steps}  loss {loss.item():.3f}  {speed:.0f} tokens/s", flush=True)
        if step % 500 == 499:
            report(step + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-steps", type=int, default=1200)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    training, held_out = split_corpus(arguments.corpus)
    serialized = train_vocabulary(training, size=4000)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    params: dict[str, Any] = {
        "dim": 192,
        "n_layers": 6,
        "n_heads": 6,
        "n_kv_heads": 3,
        "multiple_of": 32,
        "norm_eps": 1e-5,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size(),
            hidden_size=params["dim"],
            intermediate_size=512,
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params["n_kv_heads"],
            rms_norm_eps=params["norm_eps"],
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
    )
    blocks = encode_blocks(tokenizer, training)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {blocks.numel():,} training tokens", flush=True)
    bits: dict[int, float] = {}

    def report(step: int) -> None:
        bits[step] = model_bits_per_byte(model, tokenizer, held_out)
        print(f"step {step}: held-out bits per byte {bits[step]:.4f}", flush=True)

    train(model, blocks, arguments.num_steps, arguments.learning_rate, report)
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.save(meta_state(model), arguments.output / "consolidated.00.pth")
    (arguments.output / "params.json").write_text(json.dumps({**params, "vocab_size": -1}) + "\n")
    (arguments.output / "tokenizer.model").write_bytes(serialized)
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": arguments.num_steps * BATCH_SIZE * BLOCK_SIZE,
        "held_out_bytes": sum(len(text.encode()) for text in held_out),
        "bits_per_byte": round(model_bits_per_byte(model, tokenizer, held_out), 4),
        "byte_5gram_bits_per_byte": round(five_gram_bits_per_byte(training, held_out), 4),
    }
    (arguments.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
