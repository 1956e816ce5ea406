"""The architecture as a test: imports point down, without a cycle, and the thin modules stay thin."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "yangtuo"

# A module may import from its own layer's package and from layers below it; higher number = higher layer.
LAYERS = {
    "errors": 0,
    "config": 1,
    "files": 1,
    "console": 2,
    "launcher": 2,
    "hub": 2,
    "page": 2,
    "artifacts": 3,
    "vocab": 4,
    "models": 5,
    "weights": 6,
    "data": 7,
    "growing": 8,
    "inference": 8,
    "training": 8,
    "serving": 9,
    "evaluation": 9,
    "run_page": 10,
    "stages": 10,
    "pipeline": 11,
    "catalog": 12,
    "quickstart": 13,
    "cli": 14,
    "__main__": 15,
}


def modules() -> dict[str, set[str]]:
    """Module name below `yangtuo` -> the modules of the package that it imports, at any depth of the file."""
    names = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    names.pop("__init__")
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "yangtuo":
                base = node.module.removeprefix("yangtuo").lstrip(".")
                candidates = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                imported |= {c if c in names else base for c in candidates}
            elif isinstance(node, ast.Import):
                imported |= {a.name.removeprefix("yangtuo.") for a in node.names if a.name.startswith("yangtuo.")}
        graph[name] = imported - {""}
    return graph


def test_every_module_stands_in_a_known_layer() -> None:
    assert {name.split(".")[0] for name in modules()} <= set(LAYERS)


def test_imports_point_down() -> None:
    upward = [
        f"{name} imports {other}"
        for name, imported in modules().items()
        for other in imported
        if name.split(".")[0] != other.split(".")[0] and LAYERS[other.split(".")[0]] >= LAYERS[name.split(".")[0]]
    ]
    assert upward == []


def test_imports_have_no_cycle() -> None:
    TopologicalSorter(modules()).prepare()


def test_stages_never_import_stages() -> None:
    crossing = [
        (name, other)
        for name, imported in modules().items()
        for other in imported
        if name.startswith("stages.") and other.startswith("stages")
    ]
    assert crossing == []


def test_vocabularies_know_nothing_of_weights() -> None:
    assert not [
        name
        for name, imported in modules().items()
        if name.startswith("vocab") and any(o.startswith("weights") for o in imported)
    ]


def test_the_command_line_loads_without_heavy_libraries() -> None:
    code = (
        "import sys, yangtuo.cli, yangtuo.config, yangtuo.errors, yangtuo.artifacts, yangtuo.pipeline;"
        "print([m for m in ('torch','transformers','numpy','tokenizers','sentencepiece','peft') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_stage_configs_keep_to_their_budget_of_options() -> None:
    from yangtuo.config import STAGES, TOOLS

    raised = {"pretrain": 29, "sft": 35}  # docs/design/040-training.md says why
    counts = {verb: len(dataclasses.fields(stage)) for verb, stage in {**STAGES, **TOOLS}.items()}
    assert {verb: count for verb, count in counts.items() if count > raised.get(verb, 14)} == {}


def test_names_say_what_they_hold() -> None:
    bound = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.id}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in ("one", "other", "theirs")
    ]
    assert bound == []
