"""The reference is complete: options, files, keys and statuses of the code stand on a page, and no others do."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from pathlib import Path

import pytest

from yangtuo import cli, errors, pipeline
from yangtuo.artifacts.manifest import Details, Kind, Manifest, Parent
from yangtuo.config import STAGES, TOOLS
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.data.readers import TEXT_KEYS
from yangtuo.data.records import COMPRESSED, RECORD_SUFFIXES, TEXT_SUFFIXES
from yangtuo.data.shapes import SHAPES
from yangtuo.vocab.directory import TOKENIZER_FILES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("verb", [*STAGES, *TOOLS])
def test_every_option_of_the_code_is_on_its_page(verb: str) -> None:
    page = (ROOT / "docs" / "stages" / f"{verb.replace(' ', '_')}.md").read_text("utf-8")
    names = [field.name for field in dataclasses.fields({**STAGES, **TOOLS}[verb])]
    assert [name for name in names if f"--{name.replace('_', '-')}" not in page] == []


FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")
NOT_FOR_USERS = {
    *(".distillation.pt", "account.json", "complete.json", "documents.bin", "marks.bin", "sketches.bin"),  # of work
    *("metrics.json", "page.html.jinja", "tokenizer.ggml.model"),  # of the package, and a key of GGUF
}


def test_every_file_that_the_code_names_is_on_the_page_of_formats() -> None:
    kinds = "json|jsonl|bin|html|txt|md|safetensors|gguf|pth|npy|jinja|model|zip|yaml|pt"
    named = {
        name
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(rf'"([\w.-]+\.(?:{kinds}))"', path.read_text("utf-8"))
    }
    assert sorted(name for name in named - NOT_FOR_USERS if f"{name.lstrip('.')}`".lower() not in FORMATS.lower()) == []
    assert named >= NOT_FOR_USERS, "what is gone from the code can go from here"


def test_every_format_is_on_the_page_of_formats() -> None:
    words = {
        *(f"`{suffix}`" for suffix in (*TEXT_SUFFIXES, *RECORD_SUFFIXES, *COMPRESSED)),
        *(f"`{name}`" for name in TOKENIZER_FILES),
        *(f"`{key}`" for shape in SHAPES for key in shape.keys),
        *(f"`{key}`" for key in TEXT_KEYS),
        *(f"`{suite}`" for suite in typing.get_args(typing.get_type_hints(EvaluateConfig)["suite"])),
    }
    assert sorted(word for word in words if word not in FORMATS) == []


def test_every_key_of_a_manifest_is_on_the_page_of_formats() -> None:
    keys = {field.name for kind in (Manifest, Parent) for field in dataclasses.fields(kind)}
    words = {*keys, "fingerprint", *(kind.value for kind in Kind), *typing.get_type_hints(Details)}
    assert sorted(word for word in words if f"`{word}`" not in FORMATS) == []


def test_every_exit_status_is_on_its_page_and_no_other() -> None:
    """Scripts and schedulers act on them."""
    listed = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "exit-codes.md").read_text("utf-8"), re.MULTILINE)
    sources = [path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")]
    ends = {int(code) for text in sources for code in re.findall(r"(?:SystemExit|os\._exit)\((\d+)\)", text)}
    kinds = [getattr(errors, name) for name in dir(errors)]
    ends |= {kind.status for kind in kinds if isinstance(kind, type) and issubclass(kind, errors.UserError)}
    invoke = next(node for node in ast.parse(inspect.getsource(cli.invoke)).body if isinstance(node, ast.FunctionDef))
    returned = [node.value for node in ast.walk(invoke) if isinstance(node, ast.Return)]
    ends |= {node.value for node in returned if isinstance(node, ast.Constant)}
    assert sorted(map(int, listed)) == sorted(ends)


def test_the_recipe_on_the_page_of_recipes_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    for name in ("my/llama", "my/zh", "my/en", "my/held-out-en"):
        (tmp_path / name).mkdir(parents=True)
    plan = pipeline.load(Path("recipe.yaml"))
    assert [step.config.verb for step in plan.steps][-2:] == ["merge", "evaluate"]
    listed = re.search(r"can be steps: (.*?)\.\n", text, re.DOTALL)
    assert listed is not None and set(re.findall(r"`([^`]+)`", listed[1])) == {*STAGES}
