"""What growing costs and gives: bits per byte beside the base as it is, and beside LoRA without any expansion.

    python benchmarks/training_quality.py [--base MODEL] [--tokens N ...] [--arm NAME ...] [--seed S] [--work DIR]
    python benchmarks/training_quality.py --small

Arms, all with AdamW, LoRA of the same rank at the same rate, and the same Chinese text: the base as it is; LoRA
without expansion, in the base's own tokens, at equal text and at equal seconds; the known recipe
(`resize_token_embeddings`, all rows trained, documents run together, no replay, cosine decay); sub-token means;
published Token Distillation (`token_distillation.py`, for as many seconds as our growing took); ours (`yangtuo expand
--text`, all else by default). All but the known recipe read English along and decay linearly. `--tokens` counts those
of the grown tokenizer. A step reads as much text in all of these: grown models take fewer blocks in a step, and so as
many steps for the same text. Seconds are those of processors (OMP_NUM_THREADS=1 makes them those of one idle core), so
that other work on the machine does not count; those of growing are printed apart: they are spent once. With `--work`
what was made stands there for the next run.

Thresholds, written before the run. Before training: Chinese at most 1.10 times the base's bits per byte (aim 1.05),
English at most 1.005 times. After it: at most 1.05 times LoRA without expansion at equal text, 1.03 times at equal
seconds at the largest budget, English no worse. The growing at most 2,400 seconds of processors (20 minutes on two
cores) for 4,000 pieces. Before training at most the bits of Token Distillation in as many seconds, on two of three
bases (SmolLM2-135M, the quickstart's, stories260K), or it is adopted.

Text: Chinese prose and handbooks, and the base's own English, from the corpora below `--data`; the quickstart's where
they are absent. Chinese stretches are set apart before all else, so no step, count or fit has seen what is measured.
The base is the quickstart's, or `--base`: a directory or file that `yangtuo convert` reads.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import yangtuo
from token_distillation import distil_tokens, put_rows
from yangtuo import config as options
from yangtuo.artifacts.manifest import Kind, open_artifact
from yangtuo.data import blocks
from yangtuo.growing.states import fastest
from yangtuo.quickstart.train_base import split_corpus
from yangtuo.stages import convert, expand, prepare, tokenizer_merge, tokenizer_train
from yangtuo.training import adapter, base, held_out, loop, rates
from yangtuo.vocab.encoding import Encoder, load_encoder

PACKAGE = Path(yangtuo.__file__).parent / "quickstart"
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
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
FEW_PIECES = 400  # of the quickstart's texts, which hold no more
HELD_OUT_EVERY = 40  # one stretch of Chinese in so many is measured


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
class Arm:
    """A way to begin and to train."""

    model: str
    data: str
    embeddings: adapter.EmbeddingRows
    is_known: bool = False
    """The known recipe's decay and documents."""
    rows: str = ""
    """A file of new rows that take the place of the model's own."""


ARMS = {
    "LoRA, no expansion, equal text": Arm("base", "data-base", "frozen"),
    "LoRA, no expansion, equal seconds": Arm("base", "data-base", "frozen"),
    "resize, the known recipe": Arm("known", "data-known", "full", is_known=True),
    "sub-token mean": Arm("mean", "data-grown", "new"),
    "token distillation": Arm("mean", "data-grown", "new", rows="token-distillation.pt"),
    "ours": Arm("ours", "data-grown", "new"),
}


@dataclass(frozen=True)
class Outcome:
    """Held-out bits per byte by language, before and after, and what it took."""

    before: dict[str, float]
    after: dict[str, float]
    tokens: int
    seconds: float


def write_texts(directory: Path, corpora: Path) -> dict[str, list[str]]:
    """Writes the texts as one file a document, and returns those held out, by language."""
    (directory / "zh").mkdir(exist_ok=True)
    (directory / "en").mkdir(exist_ok=True)
    if not corpora.is_dir():
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
        lines = (corpora / "zh" / f"{name}.txt").read_text(encoding="utf-8-sig").splitlines(keepends=True)
        chinese += stretches(lines)
    training, english = split_corpus(corpora / "en")
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


def learn_tokenizer(own: Path, corpus: Path, num_pieces: int, work: Path) -> Path:
    """The base's tokenizer with pieces learned from `corpus`, in `work`; what stands there is not made again."""
    pieces, tokenizer = work / "pieces", work / "tokenizer"
    if not pieces.is_dir():
        tokenizer_train.run(
            options.TokenizerTrainConfig(base=str(own), corpus=(str(corpus),), size=num_pieces, output=pieces)
        )
    if not tokenizer.is_dir():
        tokenizer_merge.run(options.TokenizerMergeConfig(base=str(own), pieces=str(pieces), output=tokenizer))
    return tokenizer


def grow(own: Path, tokenizer: Path, texts: Sequence[Path], output: Path) -> float:
    """Runs `yangtuo expand` where its output does not stand yet; returns the seconds of processors that it took."""
    spent = output.with_name(f"{output.name}.seconds.json")
    if not spent.is_file():
        flags = [f"--text={text}" for text in texts]
        command = [sys.executable, "-m", "yangtuo", "expand", f"--model={own}", f"--tokenizer={tokenizer}", *flags]
        before, start = _seconds_of_children(), time.perf_counter()
        subprocess.run([*command, f"--output={output}"], check=True, stdout=subprocess.DEVNULL)
        seconds = {"processors": _seconds_of_children() - before, "wall": time.perf_counter() - start}
        spent.write_text(json.dumps(seconds), encoding="utf-8")
    return float(json.loads(spent.read_text(encoding="utf-8"))["processors"])


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_road(work: Path, source: str, num_pieces: int) -> float:
    """Base, tokenizer, the grown models and the datasets below `work`; returns the seconds that our growing took.

    What stands there already is not made again.
    """
    zh, en, own = work / "zh", work / "en", work / "base"
    if not own.is_dir():
        convert.run(options.ConvertConfig(source=source, output=own, dtype="float32"))
    tokenizer = learn_tokenizer(own, zh, num_pieces, work)
    seconds = grow(own, tokenizer, [zh, en], work / "ours")
    if not (work / "mean").is_dir():
        expand.run(
            options.ExpandConfig(model=str(own), tokenizer=str(tokenizer), init="subtoken-mean", output=work / "mean")
        )
    if not (work / "known").is_dir():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(own)
        model.resize_token_embeddings(load_encoder(tokenizer).vocabulary_size)
        model.save_pretrained(work / "known")
    read(zh, None, tokenizer, work / "data-known")
    read(zh, en, tokenizer, work / "data-grown")
    read(zh, en, own, work / "data-base")
    return seconds


def read(zh: Path, en: Path | None, tokenizer: Path, output: Path) -> None:
    """Chinese, and `REPLAY` of the English text, as blocks of `tokenizer`; what stands there is not made again."""
    if not output.is_dir():
        sources = (f"zh={zh}",) if en is None else (f"zh={zh}", f"en={en}:{REPLAY}")
        prepare.run(
            options.PrepareConfig(
                source=sources, tokenizer=str(tokenizer), output=output, block_size=BLOCK, held_out=0.03
            )
        )


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


def blocks_a_step(own: Path, grown: Path) -> int:
    """Blocks of the dataset `grown` that hold about as much text as `BATCH` of the base's `own`."""
    num_own, num_grown = (len(blocks.BlockDataset(path)) for path in (own, grown))
    return max(1, round(BATCH * num_grown / num_own))


def train(
    work: Path, arm: Arm, rate: float, steps: int, seed: int, sources: list[HeldOut], batch_size: int = BATCH
) -> Outcome:
    """One run of an arm."""
    dataset = blocks.BlockDataset(work / arm.data)
    fresh = rates.DISTILLED if arm.rows else base.fresh_rows(open_artifact(str(work / arm.model)), None)
    settings = loop.Settings(
        learning_rate=rate,
        fresh_rows=fresh if arm.embeddings == "new" else 0.0,
        schedule="cosine" if arm.is_known else "linear",
        batch_size=batch_size,
        save_every=steps,
        max_steps=steps,
        seed=seed,
    )
    torch.manual_seed(seed)
    rows: tuple[int, ...] = ()
    if arm.embeddings == "new":
        ends = base.end_ids(load_encoder(work / "tokenizer"))
        rows = base.new_rows(open_artifact(str(work / arm.model), Kind.MODEL), ends)
    shape = adapter.AdapterShape(rank=RANK, alpha=2 * RANK, embeddings=arm.embeddings, new_rows=rows)
    model = base.load_base(work / arm.model, loop.compute_dtype("auto"))
    if arm.rows:
        put_rows(model, work / arm.rows)
    adapted = adapter.attach(model, shape)
    data = Concatenated(dataset) if arm.is_known else dataset
    before = measure(adapted, sources)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        start = time.process_time()
        loop.train(adapted, data, [], settings, Path(directory))
        seconds = time.process_time() - start
    return Outcome(before, measure(adapted, sources), steps * batch_size * BLOCK, seconds)


def measure(model: torch.nn.Module, sources: list[HeldOut]) -> dict[str, float]:
    """Bits per byte of each source."""
    dtype, (_, device) = loop.compute_dtype("auto"), fastest()
    twice = [2 * sum(map(len, source.documents)) for source in sources]  # windows overlap by half
    packed = [held_out.pack(source, BLOCK, BATCH, tokens) for source, tokens in zip(sources, twice, strict=True)]
    return held_out.bits_per_byte(
        model.to(device),
        packed,
        lambda: torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        device,
        lambda text: None,  # noqa: ARG005
    )


def show(name: str, outcome: Outcome, untouched: dict[str, float]) -> None:
    """One line of the table: Chinese and English, before and after, and as shares of the base's."""
    cells = [
        f"{outcome.before[key]:.3f} -> {outcome.after[key]:.3f} ({outcome.before[key] / untouched[key]:.3f}, "
        f"{outcome.after[key] / untouched[key]:.3f})"
        for key in ("zh", "en")
    ]
    print(f"| {name} | {outcome.tokens:,} | {outcome.seconds:.0f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Runs the arms at each budget and prints the table and what became of the thresholds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=str(PACKAGE / "base"), help="the English Llama to begin with")
    parser.add_argument("--data", type=Path, default=DATA, help="where corpora/zh and corpora/en are")
    parser.add_argument("--tokens", type=int, action="append", help="budgets, in tokens of the grown tokenizer; 49152")
    parser.add_argument("--rate", type=float, default=1e-3, help="LoRA's learning rate in all arms")
    parser.add_argument("--arm", choices=tuple(ARMS), action="append", help="arms to run beside ours; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a directory to keep what is made; a temporary one if not given")
    parser.add_argument("--small", action="store_true", help="a few steps in the quickstart's texts")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.small:
        arguments.data, arguments.tokens = Path("none"), [4 * BATCH * BLOCK]
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
        compare(arguments.work, arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), arguments)


def compare(work: Path, arguments: argparse.Namespace) -> None:
    """Makes what is needed in `work`, and runs the arms."""
    corpora = arguments.data / "corpora"
    texts = write_texts(work, corpora)
    growing = make_road(work, arguments.base, NUM_PIECES if corpora.is_dir() else FEW_PIECES)
    arms = [arm for arm in arguments.arm or ARMS if arm != "ours"]
    if "token distillation" in arms and not (work / ARMS["token distillation"].rows).is_file():
        distil_tokens(work, growing, arguments.seed)
    own, grown = (held_out_sources(texts, load_encoder(work / of)) for of in ("base", "tokenizer"))
    untouched = measure(base.load_base(work / "base", loop.compute_dtype("auto")), own)
    print(f"growing took {growing:.0f} s; the base as it is: zh {untouched['zh']:.3f}, en {untouched['en']:.3f}\n")
    print("| arm | tokens | seconds | zh (of the base's) | en (of the base's) |\n| --- | ---: | ---: | --- | --- |")
    few = blocks_a_step(work / "data-base", work / "data-grown")
    outcomes: dict[str, Outcome] = {}
    for budget in arguments.tokens or [49_152]:
        steps = max(1, budget // (few * BLOCK))
        for arm in ("ours", *arms):
            batch_size = few if ARMS[arm].data == "data-grown" else BATCH
            num_steps = max(1, budget // (BATCH * BLOCK)) if ARMS[arm].is_known else steps
            if arm.endswith("equal seconds"):
                reference = outcomes.get("LoRA, no expansion, equal text")
                if reference is None:
                    continue
                pace = reference.seconds / (reference.tokens / (BATCH * BLOCK))
                num_steps = max(1, round(outcomes["ours"].seconds / pace))
            sources = own if ARMS[arm].model == "base" else grown
            outcomes[arm] = train(work, ARMS[arm], arguments.rate, num_steps, arguments.seed, sources, batch_size)
            show(arm, outcomes[arm], untouched)
    judge(outcomes, untouched, growing)


def judge(outcomes: dict[str, Outcome], untouched: dict[str, float], growing: float) -> None:
    """Says for each threshold whether it was kept, at the largest budget."""
    ours = outcomes["ours"]
    rows = [
        ("Chinese before training, of the base's", ours.before["zh"] / untouched["zh"], 1.10),
        ("English before training, of the base's", ours.before["en"] / untouched["en"], 1.005),
        ("seconds of growing", growing, 2400.0),
    ]
    if "token distillation" in outcomes:
        rival = outcomes["token distillation"].before["zh"]
        rows.append(("Chinese before training, of Token Distillation's", ours.before["zh"] / rival, 1.0))
    for arm, limit in (("LoRA, no expansion, equal text", 1.05), ("LoRA, no expansion, equal seconds", 1.03)):
        if arm in outcomes:
            rows.append((f"Chinese after training, of {arm}", ours.after["zh"] / outcomes[arm].after["zh"], limit))
            rows.append((f"English after training, of {arm}", ours.after["en"] / outcomes[arm].after["en"], 1.0))
    print()
    for name, value, limit in rows:
        print(f"{name}: {value:.3f}, at most {limit:g}: {'kept' if value <= limit else 'missed'}")


if __name__ == "__main__":
    main()
