"""What a recipe run has shown, as one page: lineage, tokenizer, curves, evaluations, cost and the recipe.

It draws what manifests, logs and results hold and measures nothing. Pages are rendered by `yangtuo.page`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from yangtuo import page
from yangtuo.artifacts.checksums import own_file
from yangtuo.artifacts.manifest import Artifact, Kind
from yangtuo.evaluation.report import evaluation_sections
from yangtuo.evaluation.results import RESULTS_FILE
from yangtuo.files import read_json
from yangtuo.page import Block, Card, Cards, Figures, Listing, Section, Table
from yangtuo.page.charts import draw_curves, draw_lineage

_COUNTED = ("parameters", "added", "new_rows", "rank", "trained_parameters", "blocks", "documents", "tokens", "steps")


def run_page(
    title: tuple[str, str],
    artifacts: Mapping[str, Artifact],
    recipe: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, float]],
    lead: Sequence[Section] = (),
) -> str:
    """The page of a recipe run: `lead`, then lineage, tokenizer, curves, evaluations, cost and the recipe."""
    sections = [*lead, _lineage(artifacts), *_tokenizers(artifacts), *_curves(artifacts)]
    for name, artifact in artifacts.items():
        if artifact.manifest and artifact.manifest.stage == "evaluate":
            file, details = own_file(artifact, RESULTS_FILE), artifact.manifest.details
            if file is not None:
                suite, compared = details.get("suite", ""), details.get("forgetting", {})
                sections += evaluation_sections(f"{name}, {suite}", read_json(file), compared)
    sections.append(_cost(artifacts, costs))
    written = yaml.safe_dump(dict(recipe), allow_unicode=True, sort_keys=False, width=110)
    sections.append(
        Section("The recipe, to run it again · 重做所需的配方", [Listing(written.splitlines())], folded=True)
    )
    return page.render(*title, str(recipe["output"]), sections)


def _lineage(artifacts: Mapping[str, Artifact]) -> Section:
    names = {str(artifact.path): name for name, artifact in artifacts.items()}
    nodes: dict[str, tuple[str, list[str]]] = {}
    rows = []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        assert manifest is not None
        parents = []
        for parent in manifest.parents.values():
            known = names.get(parent.path, Path(parent.path).name)
            if known not in artifacts:
                nodes.setdefault(known, ("given · 外来", []))
            parents.append(known)
        nodes[name] = (f"{manifest.kind}", parents)
        counted = [
            f"{key.replace('_', ' ')} {manifest.details[key]:,}"
            for key in _COUNTED
            if _is_count(manifest.details.get(key))
        ]
        rows.append(
            [
                name,
                manifest.kind.value,
                f"yangtuo {manifest.stage}",
                ", ".join(dict.fromkeys(parents)),
                ", ".join(counted),
                manifest.fingerprint[:12],
            ]
        )
    columns = ["step · 步骤", "kind · 种类", "made by · 命令", "from · 来自", "figures · 数量", "fingerprint · 指纹"]
    picture = Figures([("each box is made from those above that lead to it · 由上方相连者生成", draw_lineage(nodes))])
    return Section("What was made from what · 产物与来历", [picture, Table(columns, rows)])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokenizers(artifacts: Mapping[str, Artifact]) -> list[Section]:
    blocks: list[Block] = []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        details = manifest.details if manifest else {}
        grown = {"added", "base_vocabulary_size", "vocabulary_size"}
        if manifest and manifest.kind == Kind.TOKENIZER and grown <= details.keys():
            base, whole = details["base_vocabulary_size"], details["vocabulary_size"]
            blocks.append(
                Cards([Card(f"{base:,} → {whole:,}", f"tokens, {name} · 词表大小", f"{details['added']:,} new · 新增")])
            )
        elif manifest and manifest.stage == "tokenizer audit":
            counted = [(key, value) for key, value in details.items() if isinstance(value, int | float)]
            rows = [
                [key.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"]
                for key, value in counted
                if not isinstance(value, bool)
            ]
            blocks.append(Table([f"audit, {name} · 检查", "found · 结果"], rows))
        elif manifest and manifest.kind == Kind.DATASET and "sources" in details:
            rows = [
                [source, f"{characters:,}", f"{tokens:,}", f"{characters / max(tokens, 1):.3f}"]
                for source, row in details["sources"].items()
                for characters, tokens in [(row.get("characters", 0), row.get("text_tokens", 0))]
            ]
            blocks.append(
                Table(
                    [
                        f"text of {name} · 语料",
                        "characters · 字符",
                        "tokens · 词元",
                        "characters per token · 每词元字符",
                    ],
                    rows,
                )
            )
    return [Section("The tokenizer · 分词器", blocks)] if blocks else []


def _curves(artifacts: Mapping[str, Artifact]) -> list[Section]:
    pictures = []
    for name, artifact in artifacts.items():
        file = own_file(artifact, "metrics.jsonl")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file else []
        losses: dict[str, list[tuple[float, float]]] = {}
        held_out: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            for key, value in row.items():
                if key.startswith("loss") and isinstance(value, int | float):
                    losses.setdefault(key.replace("_", " "), []).append((row["step"], value))
                elif key.startswith(("loss", "bits_per_byte")) and isinstance(value, Mapping):
                    curves = losses if key.startswith("loss") else held_out
                    for part, figure in value.items():
                        curves.setdefault(part, []).append((row["step"], figure))
        if losses:
            pictures.append((f"{name}: loss, nats per token · 损失", draw_curves(losses, "step")))
        if held_out:
            pictures.append(
                (f"{name}: held-out text, bits per byte · 留出文本", draw_curves(held_out, "step", from_zero=True))
            )
    return [Section("How it learnt · 学习过程", [Figures(pictures)])] if pictures else []


def _cost(artifacts: Mapping[str, Artifact], costs: Mapping[str, Mapping[str, float]]) -> Section:
    rows = []
    for name, artifact in artifacts.items():
        cost = costs.get(name, {})
        tokens = artifact.manifest.details.get("tokens") if artifact.manifest else None
        seconds, memory = cost.get("seconds"), cost.get("peak_gigabytes")
        rows.append(
            [
                name,
                "" if seconds is None else f"{seconds:,.1f}",
                f"{tokens:,}" if _is_count(tokens) else "",
                "" if memory is None else f"{memory:.2f}",
            ]
        )
    total = sum(cost.get("seconds", 0.0) for cost in costs.values())
    rows.append(["in all · 合计", f"{total:,.1f}", "", ""])
    return Section(
        "Cost · 开销",
        [Table(["step · 步骤", "seconds · 秒", "tokens · 词元", "peak memory so far, GB · 至此峰值内存"], rows)],
    )
