"""The line between Chinese gained and English lost, for the adapter that the quickstart trains; one picture.

    yangtuo quickstart --output runs/quickstart
    python benchmarks/forgetting_frontier.py --run runs/quickstart [--picture docs/images/forgetting-frontier.svg]

One adapter (the quickstart's `pretrain` without `--kl-coef`) is measured as it is, and repaired after training: scaled
as a whole, its LoRA alone, its rows half way back to where `expand` put them, and by PEFT's own
`reduce_intruder_dimension`. Beside it, the same training with several weights of `--kl-coef`, with more epochs, and
with other replay: half as much English, twice as much, and English of the base's own domain. Chinese is the
quickstart's held-out text; English is that which the base was held out from (one stretch in twenty of the corpora
below `--data`), whose domain no training text of the quickstart has.

Thresholds, written before the run: English at most 2 % worse than the base, Chinese at most 2 % worse than the adapter
as it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.intruders import reduce_intruder_dimension

import yangtuo
from yangtuo.artifacts.manifest import read_manifest
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.page.charts import draw_curves
from yangtuo.quickstart.train_base import split_corpus
from yangtuo.stages import prepare, pretrain
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights import loading

PACKAGE = Path(yangtuo.__file__).parent
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
TEXTS = PACKAGE / "quickstart" / "texts"
SCALES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
EPOCHS = 8
COEFFICIENTS = (0.3, 1.0, 3.0)
SHOWN = 2.75  # Chinese in the picture, at most: an adapter scaled to less than a half is far above
REPLAY = {
    "half the replay": (f"en={TEXTS / 'en'}:0.5",),
    "twice the replay": (f"en={TEXTS / 'en'}:2",),
    "replay of the base's domain": (f"en={TEXTS / 'en'}:0.5", "own={own}:0.5"),
}


@dataclass(frozen=True)
class Change:
    """What is done to an adapter after training: factors of what it changed."""

    lora: float = 1.0
    rows: float = 1.0
    reduces_intruders: bool = False


def adapted(model: Path, adapter: Path, change: Change) -> Any:
    """The model with the adapter, changed."""
    with_adapter = loading.load_adapter(loading.load_model(model, dtype=torch.float32), adapter)
    if change.reduces_intruders:
        reduce_intruder_dimension(with_adapter, logging_sink=None)
    for module in with_adapter.modules():
        for name in getattr(module, "lora_A", {}):
            module.scaling[name] *= change.lora
        for name, learned in getattr(module, "trainable_tokens_delta", {}).items():
            start = module.trainable_tokens_original[name]
            learned.data = start + change.rows * (learned.data - start)
    return with_adapter.eval()


def train_again(run: Path, work: Path, name: str, sources: tuple[str, ...] = (), **changed: Any) -> Path:
    """The quickstart's training with other English in it, or with other options; returns the adapter."""
    data, output = work / f"data {name}" if sources else run / "prepare", work / f"adapter {name}"
    manifest = read_manifest(run / "pretrain")
    assert manifest is not None
    given = {key: value for key, value in manifest.config.items() if key not in ("model", "data", "output")}
    if not data.is_dir():
        prepare.run(
            PrepareConfig(
                source=(f"zh={TEXTS / 'zh'}", *sources),
                tokenizer=str(run / "expand"),
                block_size=256,
                held_out=0.05,
                output=data,
            )
        )
    if not output.is_dir():
        config = PretrainConfig(model=str(run / "expand"), data=str(data), output=output)
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        pretrain.run(replace(config, **{**fields, **changed}))
    return output


def points(run: Path, work: Path) -> Iterator[tuple[str, str, Path, Change]]:
    """What is measured: curve, label, adapter and what is done to it."""
    plain = train_again(run, work, "plain", kl_coef=0.0)
    for scale in SCALES:
        yield "scaled", f"times {scale:g}", plain, Change(scale, scale)
    for scale in (0.5, 0.75):
        yield "LoRA scaled", f"LoRA times {scale:g}", plain, Change(lora=scale)
    yield "rows back", "rows half way back", plain, Change(rows=0.5)
    yield "intruders", "reduce_intruder_dimension", plain, Change(reduces_intruders=True)
    for coefficient in COEFFICIENTS:
        name = f"--kl-coef {coefficient:g}"
        yield "--kl-coef", name, train_again(run, work, name, kl_coef=coefficient), Change()
    for coefficient in (0.0, *COEFFICIENTS):
        name = f"{EPOCHS} epochs, --kl-coef {coefficient:g}"
        longer = train_again(run, work, name, kl_coef=coefficient, epochs=EPOCHS)
        yield f"{EPOCHS} epochs", name, longer, Change()
    for name, sources in REPLAY.items():
        texts = tuple(text.format(own=work / "own") for text in sources)
        yield "replay", name, train_again(run, work, name, texts, kl_coef=0.0), Change()


def standalone(svg: str) -> str:
    """A picture of the page's charts as a file of its own."""
    style = re.sub(r"<[^>]*>", "", (PACKAGE / "page" / "page.css").read_text(encoding="utf-8"))
    kept = " ".join(re.findall(r"(?:svg|\.curve|:root)[^{}]*\{[^{}]*\}", style))
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{kept} text {{ font-family: sans-serif; }}</style>", 1
    )


def main() -> None:
    """Measures all points, prints them and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished quickstart")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, help="where other adapters are trained; beside the run if not given")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--small", action="store_true", help="nothing: it takes a finished quickstart")
    arguments = parser.parse_args()
    if arguments.small or not arguments.run:
        print("forgetting_frontier.py takes a finished quickstart: --run DIR")
        return
    run, work = arguments.run, arguments.work or arguments.run.with_name(f"{arguments.run.name}-frontier")
    training, english = split_corpus(arguments.data / "corpora" / "en")
    (work / "own").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(training):
        (work / "own" / f"{number:04}.txt").write_text(text, encoding="utf-8")
    chinese = [path.read_text(encoding="utf-8") for path in sorted((TEXTS / "zh-held-out").glob("*.txt"))]
    texts = {"zh": chinese, "en": [text[:3000] for text in english]}
    encoder = load_encoder(run / "expand")
    base = loading.load_model(run / "convert", dtype=torch.float32).eval()
    goal = score_text(base, load_encoder(run / "convert"), texts["en"]).bits_per_byte
    print(
        f"the base: English {goal:.4f}\n\n| point | Chinese | English | of the base's |\n| --- | ---: | ---: | ---: |"
    )
    curves: dict[str, list[tuple[float, float]]] = {}
    for curve, label, adapter, change in points(run, work):
        model = adapted(run / "expand", adapter, change)
        zh, en = (score_text(model, encoder, texts[key]).bits_per_byte for key in ("zh", "en"))
        print(f"| {label} | {zh:.4f} | {en:.4f} | {en / goal - 1:+.1%} |", flush=True)
        curves.setdefault(curve, []).append((100 * (en / goal - 1), zh))
    if arguments.picture:
        shown = {name: [point for point in curve if point[1] < SHOWN] for name, curve in curves.items()}
        shown = {name: curve for name, curve in shown.items() if len(curve) > 1}
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_curves(
            shown, f"% of English lost; upright: bits per byte of Chinese. {EPOCHS} epochs: --kl-coef 0 to 3"
        )
        arguments.picture.write_text(standalone(drawn) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
