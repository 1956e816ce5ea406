"""How many pieces: what so many of them save in tokens, and what they cost in bits per byte before and after training.

    python benchmarks/piece_counts.py [--base MODEL] [--pieces N ...] [--tokens N] [--work DIR]

Texts, held-out stretches, measures and training are those of `training_quality.py`; each number of pieces is learned,
merged and expanded by the verbs themselves, with all else by default. Prints tokens a character, Chinese and English
bits per byte as shares of the base's, the same after training as shares of LoRA without an expansion on the same text
(`--tokens` of the base's own) in as many steps, new rows that the held-out text uses, and the seconds of processors of
expanding.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

from training_quality import (
    BATCH,
    BLOCK,
    DATA,
    PACKAGE,
    Arm,
    blocks_a_step,
    grow,
    held_out_sources,
    learn_tokenizer,
    measure,
    read,
    train,
    write_texts,
)
from yangtuo import config as options
from yangtuo.artifacts.manifest import read_manifest
from yangtuo.stages import convert
from yangtuo.training import base, loop
from yangtuo.vocab.encoding import load_encoder

COUNTS = (500, 1000, 2000, 4000, 8000)


def compare(work: Path, arguments: argparse.Namespace) -> None:
    """Makes what is needed in `work`, and prints the table."""
    texts = write_texts(work, arguments.data / "corpora")
    own = work / "base"
    if not own.is_dir():
        convert.run(options.ConvertConfig(source=arguments.base, output=own, dtype="float32"))
    old = load_encoder(own)
    untouched = measure(base.load_base(own, loop.compute_dtype("auto")), held_out_sources(texts, old))
    characters = sum(map(len, texts["zh"]))
    length = sum(len(old.encode(text)) for text in texts["zh"])
    print(
        f"the base: zh {untouched['zh']:.3f}, en {untouched['en']:.3f}, {length / characters:.3f} tokens a character\n"
    )
    steps = arguments.tokens // (BATCH * BLOCK)
    rival = {"zh": 1.0, "en": 1.0}
    if steps:
        read(work / "zh", work / "en", own, work / "data-base")
        arm = Arm("base", "data-base", "frozen")
        rival = train(work, arm, arguments.rate, steps, 0, held_out_sources(texts, old)).after
        print(f"LoRA without an expansion, {steps} steps: zh {rival['zh']:.3f}, en {rival['en']:.3f}\n")
    after = " after training: zh | en |" if steps else ""
    print(f"| pieces | init | tokens a character | of the base's | zh | en |{after} rows used | seconds |")
    print(f"| ---: | --- | ---: | ---: | ---: | ---: |{' ---: | ---: |' if steps else ''} ---: | ---: |", flush=True)
    for count in arguments.pieces or COUNTS:
        room = work / f"{count}"
        tokenizer = learn_tokenizer(own, work / "zh", count, room)
        seconds = grow(own, tokenizer, [work / "zh", work / "en"], room / "ours")
        new = load_encoder(tokenizer)
        model = base.load_base(room / "ours", loop.compute_dtype("auto"))
        measured = [shares(measure(model, held_out_sources(texts, new)), untouched)]
        if steps:
            read(work / "zh", work / "en", tokenizer, room / "data-grown")
            few = blocks_a_step(work / "data-base", room / "data-grown")
            arm = Arm("ours", "data-grown", "new")
            done = train(room, arm, arguments.rate, steps, 0, held_out_sources(texts, new), few)
            measured.append(shares(done.after, rival))
        ids = [index for text in texts["zh"] for index in new.encode(text)]
        used = len({index for index in ids if index >= old.vocabulary_size})
        manifest = read_manifest(room / "ours")
        assert manifest is not None
        print(
            f"| {count:,} | {manifest.details['init']} | {len(ids) / characters:.3f} | {len(ids) / length:.2f}", end=" "
        )
        print(f"| {' | '.join(measured)} | {used:,} | {seconds:.0f} |", flush=True)


def shares(bits: dict[str, float], of: dict[str, float]) -> str:
    """Chinese and English bits per byte, and as shares of others'."""
    return " | ".join(f"{bits[key]:.3f} ({bits[key] / of[key]:.3f})" for key in ("zh", "en"))


def main() -> None:
    """Runs the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=str(PACKAGE / "base"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--pieces", type=int, action="append")
    parser.add_argument("--tokens", type=int, default=49_152, help="of the base's own, to train on; 0: no training")
    parser.add_argument("--rate", type=float, default=1e-3, help="LoRA's learning rate")
    parser.add_argument("--work", type=Path, help="a directory to keep what is made; a temporary one if not given")
    parser.add_argument("--small", action="store_true", help="few pieces, of the quickstart's texts")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.small:
        arguments.data, arguments.pieces, arguments.tokens = Path("none"), [200, 400], 4 * BATCH * BLOCK
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
        compare(arguments.work, arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), arguments)


if __name__ == "__main__":
    main()
