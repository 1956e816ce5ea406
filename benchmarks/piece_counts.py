"""How many pieces: what so many of them save in tokens, and what they cost in bits per byte before any training.

    python benchmarks/piece_counts.py [--base MODEL] [--pieces N ...] [--work DIR]

Texts, held-out stretches and measures are those of `training_quality.py`; each number of pieces is learned, merged and
expanded by the verbs themselves, with all else by default. Prints tokens a character, Chinese and English bits per byte
as shares of the base's, new rows that the held-out text uses, and the seconds of processors that expanding took.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

from training_quality import DATA, PACKAGE, grow, held_out_sources, learn_tokenizer, measure, write_texts
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
    print("| pieces | init | tokens a character | of the base's | zh | en | rows used | seconds |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for count in arguments.pieces or COUNTS:
        room = work / f"{count}"
        tokenizer = learn_tokenizer(own, work / "zh", count, room)
        seconds = grow(own, tokenizer, [work / "zh", work / "en"], room / "ours")
        new = load_encoder(tokenizer)
        model = base.load_base(room / "ours", loop.compute_dtype("auto"))
        grown = measure(model, held_out_sources(texts, new))
        ids = [index for text in texts["zh"] for index in new.encode(text)]
        used = len({index for index in ids if index >= old.vocabulary_size})
        manifest = read_manifest(room / "ours")
        assert manifest is not None
        shares = " | ".join(f"{grown[key]:.3f} ({grown[key] / untouched[key]:.3f})" for key in ("zh", "en"))
        print(
            f"| {count:,} | {manifest.details['init']} | {len(ids) / characters:.3f} | {len(ids) / length:.2f}", end=" "
        )
        print(f"| {shares} | {used:,} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Runs the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=str(PACKAGE / "base"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--pieces", type=int, action="append")
    parser.add_argument("--work", type=Path, help="a directory to keep what is made; a temporary one if not given")
    parser.add_argument("--small", action="store_true", help="few pieces, of the quickstart's texts")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.small:
        arguments.data, arguments.pieces = Path("none"), [200, 400]
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
        compare(arguments.work, arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), arguments)


if __name__ == "__main__":
    main()
