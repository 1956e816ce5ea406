"""The recipes that come with Yangtuo: listed, found by name, copied to be changed. It runs none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yangtuo import console, files
from yangtuo.config.options import split_source
from yangtuo.errors import FileError, OutputError
from yangtuo.pipeline import did_you_mean, resolve


def shipped() -> dict[str, Path]:
    """Name -> file of the recipes that come with Yangtuo: in an installed package, or at the root of its sources."""
    package = Path(__file__).parent
    directory = package / "recipes" if (package / "recipes").is_dir() else package.parents[1] / "recipes"
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def find(reference: str) -> Path:
    """The recipe that is meant: a file NAME or NAME.yaml, else the one of that name that comes with Yangtuo.

    Where both are there, says which one is taken. Raises `FileError` where there is neither.
    """
    known = shipped()
    for path in (Path(reference).expanduser(), Path(f"{reference}.yaml").expanduser()):
        if path.exists() and not path.is_dir():
            if reference in known:
                console.note(f"{path} is taken, the file that is here; {known[reference]} comes with Yangtuo")
            return path
    if Path(reference).is_dir() and reference in known:
        console.note(f"the directory {reference} that is here is no recipe; the one that comes with Yangtuo is taken")
    return _known(reference)


def _known(name: str) -> Path:
    known = shipped()
    if name not in known:
        raise FileError(
            f"the recipe {name} does not exist{did_you_mean(name, known)}",
            found="a directory" if Path(name).is_dir() else None,
            expected=f"a YAML file, or one that comes with Yangtuo: {', '.join(known)}",
            run="yangtuo recipes",
        )
    return known[name]


def describe(path: Path) -> dict[str, Any]:
    """What a shipped recipe says of itself in its first two lines, and which inputs the user has to bring."""
    about, needs = (line.removeprefix("# ") for line in files.read_text(path).splitlines()[:2])
    plan = resolve(path)
    own = (str(plan.output), str(Path(__file__).parent))
    references = [text for step in plan.steps for texts in step.config.input_references().values() for text in texts]
    sources = dict.fromkeys(split_source(text).path for text in references)
    inputs = [source for source in sources if not source.startswith(own)]
    return {"name": path.stem, "about": about, "needs": needs.removeprefix("Needs: "), "inputs": inputs}


def copy(name: str) -> Path:
    """Writes the shipped recipe `name` into the working directory as NAME.yaml, to be edited; never over a file."""
    source, target = _known(name), Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(files.read_text(source))
    except FileExistsError as error:
        raise OutputError(
            f"{target} exists and is never overwritten", run=f"mv {target} my-{target}, then the same command"
        ) from error
    return target
