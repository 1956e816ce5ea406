"""Quality at equal tokens: our recipe beside the known one.

    python benchmarks/training_quality.py [--base MODEL] [--steps N] [--rate R ...] [--small]

The known recipe: `resize_token_embeddings` as it comes, all rows of embedding and head trained, documents run together,
no replay of English, one learning rate for all, cosine decay; at the rate that it was published with (2e-4) and at
higher ones, for so small a model. Ours, with LoRA at the same rate: new rows placed by the company they keep
(`expand --text`), new rows only at a rate by their size, documents apart, English read along, linear decay. Same base,
tokenizer, Chinese text, rank, batch and AdamW; bits per byte on the same texts, which no step has seen: Chinese
stretches set apart before all else, English ones that were held out when the embedded base was trained. English lost
counts from the base before it was expanded. The claims: with half the tokens, those that `expand` fits the head in
counted, ours reaches the peer's final Chinese figure, and has lost at most half as much English.

Text: Chinese prose and handbooks, and the base's own English, from ../shared/data/corpora; the quickstart's where that
is absent. The base is the quickstart's, or `--base`: a directory or file that `yangtuo convert` reads.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import yangtuo
from yangtuo import config as options
from yangtuo.artifacts.manifest import Kind, open_artifact
from yangtuo.data import blocks
from yangtuo.quickstart.train_base import split_corpus
from yangtuo.stages import convert, expand, prepare, tokenizer_merge, tokenizer_train
from yangtuo.training import adapter, base, held_out, loop, metrics_log
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import Encoder, load_encoder

PACKAGE = Path(yangtuo.__file__).parent / "quickstart"
CORPORA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "corpora"
PROSE = (
    "落花生",
    "且介亭杂文",
    "呐喊",
    "彷徨",
    "朝花夕拾",
    "中国人的修养",
    "debian-handbook-zh",
    "libreoffice-help-zh-cn",
)
BLOCK, BATCH, RANK, NUM_PIECES, REPLAY = 256, 8, 64, 4000, 0.3
HELD_OUT_EVERY = 40  # one stretch of Chinese in so many is measured
RATES = (2e-4, 1e-3, 2e-3)


class Concatenated:
    """The same blocks as the known recipe reads them: one stream, nothing kept apart."""

    def __init__(self, dataset: blocks.BlockDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self._dataset[index]["input_ids"]
        return {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(len(ids))}


@dataclass(frozen=True)
class HeldOut:
    """A few documents of a source, as the loop measures them."""

    name: str
    documents: list[torch.Tensor]
    num_bytes: int


@dataclass(frozen=True)
class Curve:
    """Held-out bits per byte before training and at the end."""

    zh_before: float
    en_before: float
    zh: float
    en: float


def write_texts(directory: Path) -> dict[str, list[str]]:
    """Writes the texts as one file a document, and returns those held out, by language."""
    (directory / "zh").mkdir()
    (directory / "en").mkdir()
    if not CORPORA.is_dir():
        for language in ("zh", "en"):
            for file in sorted((PACKAGE / "texts" / language).glob("*.txt")):
                (directory / language / file.name).write_bytes(file.read_bytes())
        return {
            language: [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))]
            for language in ("zh", "en")
            for folder in [PACKAGE / "texts" / f"{language}-held-out"]
        }
    chinese: list[str] = []
    for name in PROSE:
        lines = (CORPORA / "zh" / f"{name}.txt").read_text(encoding="utf-8-sig").splitlines(keepends=True)
        chinese += stretches(lines)
    training, english = split_corpus(CORPORA / "en")
    apart = range(HELD_OUT_EVERY // 2, len(chinese), HELD_OUT_EVERY)
    for language, texts in (("zh", [text for n, text in enumerate(chinese) if n not in apart]), ("en", training)):
        for number, text in enumerate(texts):
            (directory / language / f"{number:04}.txt").write_text(text, encoding="utf-8")
    return {"zh": [chinese[number] for number in apart], "en": [text[:3000] for text in english]}


def stretches(lines: Iterable[str], num_characters: int = 4000) -> Iterator[str]:
    """Documents of about `num_characters`, cut at line ends."""
    stretch = ""
    for line in lines:
        stretch += line
        if len(stretch) > num_characters:
            yield stretch
            stretch = ""


def make_road(work: Path, source: str) -> Encoder:
    """Base, tokenizer, both grown models and both datasets below `work`."""
    zh, en = str(work / "zh"), str(work / "en")
    paths = {name: str(work / name) for name in ("base", "pieces", "tokenizer", "ours")}
    convert.run(options.ConvertConfig(source=source, output=work / "base", dtype="float32"))
    tokenizer_train.run(
        options.TokenizerTrainConfig(base=paths["base"], corpus=(zh,), size=NUM_PIECES, output=work / "pieces")
    )
    tokenizer_merge.run(
        options.TokenizerMergeConfig(base=paths["base"], pieces=paths["pieces"], output=work / "tokenizer")
    )
    expand.run(
        options.ExpandConfig(model=paths["base"], tokenizer=paths["tokenizer"], text=(zh, en), output=work / "ours")
    )
    encoder = load_encoder(work / "tokenizer")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(work / "base")
    model.resize_token_embeddings(encoder.vocabulary_size)
    model.save_pretrained(work / "known")
    copy_tokenizer(work / "tokenizer", work / "known")
    for name, sources in (("data-known", (f"zh={zh}",)), ("data-ours", (f"zh={zh}", f"en={en}:{REPLAY}"))):
        prepare.run(
            options.PrepareConfig(
                source=sources, tokenizer=paths["ours"], output=work / name, block_size=BLOCK, held_out=0.03
            )
        )
    return encoder


def held_out_sources(texts: dict[str, list[str]], encoder: Encoder) -> list[HeldOut]:
    """The texts that nothing was trained, counted or fitted in."""
    return [
        HeldOut(
            language,
            [torch.tensor([encoder.bos_id, *encoder.encode(text)]) for text in documents],
            sum(len(text.encode()) for text in documents),
        )
        for language, documents in texts.items()
    ]


def train(work: Path, name: str, rate: float, steps: int, sources: list[HeldOut], rows: tuple[int, ...]) -> Curve:
    """One run of the known recipe or of ours."""
    known = name == "known"
    dataset = blocks.BlockDataset(work / f"data-{name}")
    settings = loop.Settings(
        learning_rate=rate,
        fresh_rows=not known,
        schedule="cosine" if known else "linear",
        batch_size=BATCH,
        save_every=steps,
        epochs=steps * BATCH / len(dataset),
    )
    torch.manual_seed(settings.seed)
    shape = adapter.AdapterShape(
        rank=RANK, alpha=2 * RANK, embeddings="full" if known else "new", new_rows=() if known else rows
    )
    adapted = adapter.attach(base.load_base(work / name, loop.compute_dtype("auto")), shape)
    data = Concatenated(dataset) if known else dataset
    with tempfile.TemporaryDirectory(dir=work) as directory:
        loop.train(adapted, data, sources, settings, Path(directory))
        found = [row["bits_per_byte"] for row in metrics_log.read_metrics(Path(directory)) if "bits_per_byte" in row]
    return Curve(found[0]["zh"], found[0]["en"], found[-1]["zh"], found[-1]["en"])


def measure_base(work: Path, sources: list[HeldOut]) -> dict[str, float]:
    """Bits per byte of the base as it was, on the sources that its own pieces can write."""
    model = base.load_base(work / "base", torch.float32)
    packed = [held_out.pack(source, BLOCK, BATCH, sum(map(len, source.documents))) for source in sources]
    return held_out.bits_per_byte(model, packed, contextlib.nullcontext)


def main() -> None:
    """Runs both recipes at each rate and prints the table and the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=str(PACKAGE / "base"), help="the English Llama to begin with")
    parser.add_argument("--steps", type=int, default=96, help="steps of the known recipe; ours gets half of them")
    parser.add_argument("--rate", type=float, action="append", help=f"LoRA's learning rate; {RATES} if not given")
    parser.add_argument("--small", action="store_true", help="a third of the tokens")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    steps = arguments.steps // 3 if arguments.small else arguments.steps
    rates = arguments.rate or list(RATES)
    print("| recipe | rate | tokens | zh | en | en lost |\n| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        texts = write_texts(work)
        encoder = make_road(work, arguments.base)
        sources = held_out_sources(texts, encoder)
        en_base = measure_base(work, sources[1:])["en"]
        grown = open_artifact(str(work / "ours"), Kind.MODEL)
        rows = base.new_rows(grown, base.end_ids(encoder))
        fitting_steps = -(-grown.result()["fitted_tokens"] // (BATCH * BLOCK))
        pairs = []
        for rate in rates:
            ours = train(work, "ours", rate, steps // 2 - fitting_steps, sources, rows)
            known = train(work, "known", rate, steps, sources, rows)
            pairs.append((rate, ours, known))
            for who, curve, num_steps in (("yangtuo", ours, steps // 2), ("known", known, steps)):
                print(
                    f"| {who} | {rate:g} | {num_steps * BATCH * BLOCK:,} | {curve.zh_before:.3f} -> {curve.zh:.3f} "
                    f"| {en_base:.3f}, {curve.en_before:.3f} -> {curve.en:.3f} | {curve.en - en_base:+.3f} |",
                    flush=True,
                )
    print()
    for rate, ours, known in pairs:
        print(
            f"{rate:g}: with half the tokens yangtuo is at {ours.zh:.3f} against {known.zh:.3f} in Chinese "
            f"({'reached' if ours.zh <= known.zh else 'not reached'}), and has lost "
            f"{(ours.en - en_base) / (known.en - en_base):.2f} times as much English"
        )


if __name__ == "__main__":
    main()
