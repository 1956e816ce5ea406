"""Which start of new rows is best: bits per byte before training, and after so many tokens of it.

Bases: the embedded quickstart base (untied) and stories260K (tied), both grown by pieces learned from
../shared/data/corpora/zh; training is plain AdamW on all weights, on Chinese, the same blocks in the same order for
every start. The peer is transformers' `resize_token_embeddings` with its defaults. Held out: the middle of four files.
cooccurrence counts in the Chinese that is trained on and in English that is not measured.
The losers are printed too.

    python benchmarks/expand_init.py [--small]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from yangtuo.config.convert import ConvertConfig
from yangtuo.config.expand import ExpandConfig
from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.stages import convert, expand
from yangtuo.vocab.base import open_base
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.vocab.scripts import compile_scripts

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
BASES = {
    "stories260K": (DATA / "models/stories260K", 3e-3),
    "quickstart base": (ROOT / "src/yangtuo/quickstart/base", 1e-3),
}
INITS = ("cooccurrence", "subtoken-mean", "exponential", "mean", "random")
MEASURES = 10
NUM_PIECES, BATCH, LENGTH = 2500, 8, 256


def grow(base: Path, tokenizer: Path, init: str, home: Path) -> PreTrainedModel:
    """The base with new rows, by our stage or by transformers."""
    if init == "transformers":
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.resize_token_embeddings(load_encoder(tokenizer).vocabulary_size)
        return model
    output = home / init
    text = (str(home / "zh"), str(home / "en")) if init == "cooccurrence" else ()
    expand.run(ExpandConfig(model=str(base), tokenizer=str(tokenizer), init=init, text=text, output=output))  # type: ignore[arg-type]
    grown: PreTrainedModel = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    return grown


def compare(name: str, inits: Sequence[str], steps: int) -> None:
    """Trains every start on the same blocks and prints its curve."""
    source, rate = BASES[name]
    files = sorted((DATA / "corpora/zh").glob("*.txt"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    books = [file.read_text(encoding="utf-8") for file in sorted((DATA / "corpora/en").glob("*.txt"))]
    english = [book[50_000:52_000] for book in books]
    held_out = [text[len(text) // 2 :][:500] for text in texts[:4]]
    learned_from = [text[: len(text) // 2 - 1000][:60_000] for text in texts]
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        base, pieces, tokenizer = home / "base", home / "pieces", home / "tokenizer"
        pieces.mkdir()
        for language, some in (("zh", learned_from), ("en", [book[60_000:200_000] for book in books])):
            (home / language).mkdir()
            for number, text in enumerate(some):
                (home / language / f"{number}.txt").write_text(text, encoding="utf-8")
        convert.run(ConvertConfig(source=str(source), output=base))
        opened, scripts = open_base(base), compile_scripts(["Han"])
        opened.learn(learned_from, NUM_PIECES, scripts, pieces)
        opened.merge(pieces, "faithful", scripts, (), tokenizer)
        old, new = load_encoder(base), load_encoder(tokenizer)
        untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        before = [score_text(untouched, old, some).bits_per_byte for some in (held_out, english)]
        print(f"{name}: untouched base {before[0]:.3f} bits/byte Chinese, {before[1]:.3f} English", flush=True)
        blocks = cut_blocks(new, learned_from)
        goal = None
        for init in inits:
            start = time.perf_counter()
            model = grow(base, tokenizer, init, home)
            first = score_text(model.eval(), new, english).bits_per_byte
            curve = train(model, new, blocks, held_out, rate, steps)
            goal = goal or min(curve.values())  # the first is the peer
            reached = next((f"{tokens:,}" for tokens, bits in curve.items() if bits <= goal), "more")
            shown = dict(list(curve.items())[:: max(1, len(curve) // 5)])
            points = "  ".join(f"{tokens:,}: {bits:.3f}" for tokens, bits in shown.items())
            seconds = time.perf_counter() - start
            print(f"  {init:<14} English {first:.3f}; Chinese after tokens {points}; ", end="")
            print(f"the peer's best {goal:.3f} after {reached}  ({seconds:.0f} s)", flush=True)


def cut_blocks(encoder: Encoder, texts: list[str]) -> torch.Tensor:
    """All texts as blocks (blocks, LENGTH), shuffled."""
    bos = encoder.bos_id if encoder.bos_id is not None else 0
    ids = [index for text in texts for index in [bos, *encoder.encode(text)]]
    blocks = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return blocks[torch.randperm(len(blocks), generator=torch.Generator().manual_seed(1))]


def train(
    model: PreTrainedModel, encoder: Encoder, blocks: torch.Tensor, held_out: list[str], rate: float, steps: int
) -> dict[int, float]:
    """Bits per byte of the held-out text by tokens trained on."""
    curve = {0: score_text(model.eval(), encoder, held_out).bits_per_byte}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.95))
    for step in range(1, steps + 1):
        model.train()
        batch = blocks[torch.arange((step - 1) * BATCH, step * BATCH) % len(blocks)]
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 10)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, steps // MEASURES) == 0 or step == steps:
            curve[step * BATCH * LENGTH] = score_text(model.eval(), encoder, held_out).bits_per_byte
    return curve


def main() -> None:
    """Compares on both bases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--base", choices=tuple(BASES), action="append")
    parser.add_argument("--init", choices=("transformers", *INITS), action="append")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    inits = arguments.init or ("transformers", *INITS)
    for name in arguments.base or BASES:
        compare(name, inits, 8 if arguments.small else arguments.steps)


if __name__ == "__main__":
    main()
