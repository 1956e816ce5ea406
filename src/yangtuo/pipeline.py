"""Recipes: YAML files that string stages together, and the plan that a recipe resolves to.

    output: runs/quickstart            where the artifacts go, one directory a step
    steps:
      convert: {source: ${package}/quickstart/base}
      merge-pretrain:                  a step's name is its directory; `stage` names the verb where the name does not
        stage: merge
        base: ${expand}                the output of the step `expand`

Every mistake in a recipe is found before any step runs. A step that is finished and whose options and inputs have not
changed is skipped; one that has changed is never overwritten. This module knows verbs by name only.
"""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError
from pydantic import Field, with_config
from typing_extensions import TypedDict

from yangtuo import console, files, hub, launcher
from yangtuo.artifacts.manifest import Artifact, read_manifest, step_fingerprint
from yangtuo.config import STAGES, other_tools
from yangtuo.config.options import StageConfig, split_source
from yangtuo.config.training import TrainingConfig
from yangtuo.errors import ConfigError, FileError, OutputError, UserError, raise_all
from yangtuo.page import Section

_COSTS = "costs.json"
_LOG = "log.txt"
_WIDTH = 200  # characters of a step's options in the plan that is shown; --json has all
# A step's name is a directory's, and stays inside the recipe's output.
StepName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=200)]


@with_config(extra="forbid")
class _Recipe(TypedDict):
    output: Annotated[str, Field(min_length=1)]
    steps: Annotated[dict[StepName, dict[str, Any]], Field(min_length=1)]


StageFunction = Callable[[str], Callable[[Any], Artifact]]


@dataclass(frozen=True)
class Step:
    """One stage of a plan, with its options resolved."""

    name: str
    config: StageConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe in order."""

    recipe: Path
    output: Path
    steps: tuple[Step, ...]

    def next_command(self) -> str | None:
        """What usually follows the last step that makes a model, else the last step."""
        made = [step.config for step in self.steps if step.config.verb == "merge"] or [self.steps[-1].config]
        return made[-1].next_command({})

    def to_dict(self) -> dict[str, Any]:
        """The resolved plan as plain values."""
        return {
            "recipe": str(self.recipe),
            "output": str(self.output),
            "steps": {step.name: {"stage": step.config.verb, **step.config.to_dict()} for step in self.steps},
        }


def load(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> Plan:
    """Reads and checks a recipe; `overrides` are `STEP.KEY=VALUE`, `output` replaces the recipe's own.

    Raises `FileError` for a recipe that cannot be read, `ConfigError` with every wrong key of every step at once.
    """
    plan = resolve(path, overrides, output)
    raise_all(_missing_inputs(plan))
    return plan


def resolve(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> Plan:
    """As `load`, whether or not the inputs are there."""
    document = _read(path)
    for override in overrides:
        _override(document, override)
    directory = output or Path(document["output"])
    variables = {"package": str(Path(__file__).parent)}
    steps, errors = [], list[UserError]()
    for name, values in document["steps"].items():
        try:
            steps.append(_step(name, values, directory, variables))
        except ConfigError as error:
            errors.append(error)
        variables[name] = str(directory / name)
    raise_all(errors)
    return Plan(path, directory, tuple(steps))


def require_inputs(plan: Plan) -> None:
    """Raises `FileError` for what looks like a hub id and is none that can be fetched; finished steps need none."""
    errors: list[UserError] = []
    for step, option, source, is_data in _given_inputs(plan):
        try:
            if not step.config.output_path().exists():
                hub.require_found(source, is_data=is_data)
        except FileError as error:
            told = f"step {step.name}: {option} names {source}: {error.problem}"
            errors.append(FileError(told, found=error.found, expected=error.expected, run=error.run))
    raise_all(errors)


def show(plan: Plan) -> None:
    """Prints the plan to stderr, a line a step, with references as the recipe has them; `to_dict` has it resolved."""
    console.note(f"{plan.recipe} → {plan.output}")
    names = {str(step.config.output_path()): f"${{{step.name}}}" for step in plan.steps}
    names[str(Path(__file__).parent)] = "${package}"
    for number, step in enumerate(plan.steps, 1):
        options = _summary(step.config)
        for path in sorted(names, key=len, reverse=True):
            options = options.replace(path, names[path])
        cut = "" if len(options) <= _WIDTH else " …"
        console.note(f"{number:>4}  {step.name} ({step.config.verb}): {options[:_WIDTH]}{cut}")


def execute(plan: Plan, stage_function: StageFunction) -> dict[str, Artifact]:
    """Runs the steps in order and returns their artifacts by step name; what they say in detail is in `log.txt`.

    `stage_function` gives a verb's `run`. Under a launcher all processes take part in training, and the main one alone
    does the rest. Raises `OutputError` where a step's output exists but was made from other options or inputs, naming
    it and all steps that depend on it, and any refusal of a training step that can be known beforehand.
    """
    console.note(f"{plan.recipe} → {plan.output}, {len(plan.steps)} steps; what they say in detail: {_LOG} there")
    training = [step.config for step in plan.steps if isinstance(step.config, TrainingConfig)]
    if not training:
        return {} if launcher.rank() > 0 else {step.name: _run_step(plan, step, stage_function) for step in plan.steps}
    from yangtuo.training import preflight, processes

    processes.start()
    raise_all([error for config in training for error in preflight.check(vars(config))])
    artifacts: dict[str, Artifact] = {}
    for step in plan.steps:
        run = partial(_run_step, plan, step, stage_function)
        together = isinstance(step.config, TrainingConfig) and not processes.main_process_first(
            partial(_is_finished, plan, step)
        )
        artifacts[step.name] = run() if together else processes.main_process_first(run)
    return artifacts


def _run_step(plan: Plan, step: Step, stage_function: StageFunction) -> Artifact:
    label = f"[{plan.steps.index(step) + 1}/{len(plan.steps)}] {step.name}"
    if _is_finished(plan, step):
        console.note(f"{label}: unchanged, skipped")
        output = step.config.output_path()
        return Artifact(output, read_manifest(output))
    console.note(f"{label}: yangtuo {step.config.verb}")
    with _cost_noted(plan.output, step.name), console.details_in(plan.output / _LOG):
        console.detail(f"{label}: yangtuo {step.config.verb} {_summary(step.config)}")
        return stage_function(step.config.verb)(step.config)


def _is_finished(plan: Plan, step: Step) -> bool:
    """Whether the step's output stands there as it would be made now; raises `OutputError` for any other output."""
    output = step.config.output_path()
    manifest = read_manifest(output) if output.is_dir() else None
    if manifest and manifest.step == step_fingerprint(step.config):
        return True
    if output.exists():
        raise _stale(plan, step)
    return False


@contextmanager
def _cost_noted(output: Path, name: str) -> Iterator[None]:
    """Adds to `costs.json` beside the artifacts what a finished step took, of this process and its children."""
    started = time.monotonic()
    yield
    if launcher.rank() > 0:
        return
    file = output / _COSTS
    costs = files.read_json(file, dict[str, dict[str, float]]) if file.is_file() else {}
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    costs[name] = {"seconds": round(time.monotonic() - started, 1), "peak_gigabytes": round(kilobytes / 1e6, 2)}
    file.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")


def write_report(
    plan: Plan, artifacts: Mapping[str, Artifact], title: str, chinese: str, lead: Sequence[Section] = ()
) -> Path:
    """Writes what the finished run of `plan` has shown, after the sections of `lead`, as `report.html`."""
    from yangtuo import page
    from yangtuo.evaluation.report import REPORT_FILE
    from yangtuo.run_page import run_page

    costs = plan.output / _COSTS
    took = files.read_json(costs, dict[str, dict[str, float]]) if costs.is_file() else {}
    file = plan.output / REPORT_FILE
    page.write(file, run_page((title, chinese), artifacts, plan.to_dict(), took, lead))
    return file


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileError(f"the recipe {path} does not exist", run="yangtuo recipes")
    text = files.read_text(path)
    document = files.parse_yaml(text, str(path))
    try:
        return dict(files.check(document, str(path), _Recipe))
    except FileError as error:
        raise ConfigError(
            f"{path} is not a recipe",
            found=error.found or error.problem,
            expected=files.missing_space(text)
            or "two keys: output (a directory) and steps (a mapping of step names to options)",
        ) from error


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    step, dot, option = key.partition(".")
    if key == "output" and separator:
        document["output"] = text
    elif not separator or not dot:
        raise ConfigError(f"--set {override!r} cannot be read", expected="STEP.KEY=VALUE, or output=DIR")
    elif not isinstance(document["steps"].get(step), dict):
        steps = list(document["steps"])
        raise ConfigError(
            f"--set names the unknown step {step!r}{did_you_mean(step, steps)}", expected=", ".join(steps)
        )
    else:
        document["steps"][step][option] = files.parse_yaml(text, f"--set {override!r}")


def _step(name: str, values: dict[str, Any], directory: Path, variables: Mapping[str, str]) -> Step:
    values = dict(values)
    verb = values.pop("stage", name.replace("-", " "))
    if not isinstance(verb, str) or verb not in STAGES:
        raise ConfigError(
            f"step {name}: no stage is called {verb!r}{did_you_mean(verb, STAGES)}", expected=", ".join(STAGES)
        )
    known = {option.name for option in STAGES[verb].options() if option.in_recipes}
    tokens: list[str] = []
    for key, value in values.items():
        if key not in known:
            raise _no_option(name, verb, key, known)
        tokens += _tokens(key, _substitute(value, variables, f"step {name}, {key}"))
    try:
        return Step(name, _parse(STAGES[verb], [*tokens, f"--output={directory / name}"]))
    except CycloptsError as error:
        raise ConfigError(f"step {name}: {error}") from error


def _no_option(step: str, verb: str, key: str, known: Set[str]) -> ConfigError:
    if key in {option.name for option in STAGES[verb].options()}:
        flag = key.replace("_", "-")
        return ConfigError(
            f"step {step}: {key} makes no sense in a recipe, whose later steps need what this one writes",
            run=f"yangtuo run RECIPE --dry-run for the plan, or yangtuo {verb} --{flag} by itself",
        )
    if key == "output":
        return ConfigError(
            f"step {step}: a step's output is its name in the recipe's output",
            expected="output: DIR beside steps, or --set output=DIR",
        )
    word, colon, _ = str(key).partition(":")
    hint = "; a space after the colon is missing" if colon and word in known else other_tools.hint(key, known)
    return ConfigError(f"step {step}: unknown option {key!r}{hint}", expected=", ".join(sorted(known)))


def _tokens(key: str, value: Any) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return [token for item in value for token in _tokens(key, item)]
    if isinstance(value, list | dict):
        raise ConfigError(
            f"the option {key!r} is nested", found=str(value)[:80], expected="a value, or a list of values"
        )
    return [f"{flag}={value}"]


def _substitute(value: Any, variables: Mapping[str, str], where: str) -> Any:
    if isinstance(value, list):
        return [_substitute(item, variables, where) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in variables:
            hint = did_you_mean(match[1], variables)
            raise ConfigError(f"{where}: ${{{match[1]}}} is not the name of an earlier step{hint}")
        return variables[match[1]]

    return re.sub(r"\$\{([^}]*)\}", replace, value)


def _parse(options: type[StageConfig], tokens: Sequence[str]) -> StageConfig:
    """One parser serves flags and YAML: a step's options are read as its command line would be."""

    def identity(options: StageConfig) -> StageConfig:
        return options

    identity.__annotations__ = {"options": options}
    parser = App(result_action="return_value", exit_on_error=False, print_error=False, help_flags=[], version_flags=[])
    parser.default(identity)
    parsed: StageConfig = parser(list(tokens))
    return parsed


def _missing_inputs(plan: Plan) -> list[UserError]:
    errors: list[UserError] = []
    for step, option, source, is_data in _given_inputs(plan):
        if Path(source).is_dir() and plan.output.resolve().is_relative_to(Path(source).resolve()):
            errors.append(
                OutputError(
                    f"the recipe's output {plan.output} lies inside {source}, which step {step.name} reads",
                    expected="an output outside of all inputs, which would change with it",
                    run=f"yangtuo run {plan.recipe} --set output=DIR",
                )
            )
        if hub.is_missing(source, is_data=is_data):
            errors.append(FileError(f"step {step.name}: {option} names {source}, which does not exist"))
    return errors


def _given_inputs(plan: Plan) -> Iterator[tuple[Step, str, str, bool]]:
    """Every input that no earlier step makes: the step, the option, the reference, and whether it is a data set's."""
    made = set[str]()
    for step in plan.steps:
        data = {option.name for option in step.config.options() if option.is_data}
        for option, references in step.config.input_references().items():
            for source in (split_source(reference).path for reference in references):
                if source not in made:
                    yield step, option, source, option in data
        made.add(str(step.config.output_path()))


def _stale(plan: Plan, changed: Step) -> OutputError:
    affected = {str(changed.config.output_path())}
    for step in plan.steps:
        references = (text for texts in step.config.input_references().values() for text in texts)
        if affected & {split_source(reference).path for reference in references}:
            affected.add(str(step.config.output_path()))
    existing = [path for path in sorted(affected) if Path(path).exists()]
    return OutputError(
        f"step {changed.name} has changed since {changed.config.output_path()} was made",
        found="an artifact made from other options or other inputs",
        expected="the same options and inputs, or a free name; nothing is ever overwritten",
        run=f"rm -r {' '.join(existing)}, or choose another directory with --set output=DIR",
    )


def _summary(config: StageConfig) -> str:
    defaults = {field: value.default for field, value in type(config).__dataclass_fields__.items()}
    shown = {key: value for key, value in config.to_dict().items() if key != "output" and value != defaults[key]}
    return ", ".join(
        f"{key} {' '.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for key, value in shown.items()
    )


def did_you_mean(word: str, known: Any) -> str:
    """What is meant by a misspelt `word`, as the end of a sentence; nothing where no known word is near."""
    close = get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
