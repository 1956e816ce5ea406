"""The command line: `yangtuo VERB --option value`.

Every verb's options come from its class in `config`; this module only wires them to `stages` and turns outcomes into
exit statuses: 0 done, 2 the user's mistake (one message), 1 ours, 130 Ctrl-C. No heavy library is imported until a
verb runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import json as json_module
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import yangtuo
from yangtuo import config, console, launcher
from yangtuo.config import other_tools
from yangtuo.config.options import StageConfig
from yangtuo.config.training import TrainingConfig
from yangtuo.errors import ConfigError, UserError

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as one JSON object on stdout.")]

_WIDTH, _LINES = 180, 28  # characters of one value and number of values: a summary fits a screen

app = App(
    name="yangtuo",
    help="Teaches an English Llama Chinese, or any other language, and keeps its English.\n\n"
    "Example: `yangtuo quickstart --output runs/quickstart`",
    version=yangtuo.__version__,
    result_action="return_value",
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    print_error=False,
    help_format="markdown",
)


def stage_function(verb: str) -> Callable[[Any], Any]:
    """The `run` of the verb's module in `stages`, imported on demand."""
    module = importlib.import_module(f"yangtuo.stages.{verb.replace(' ', '_')}")
    function: Callable[[Any], Any] = module.run
    if verb in config.TOOLS or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return function

    def finish_or_run(options: StageConfig) -> Any:
        from yangtuo.artifacts.draft import finish_earlier

        is_dry = getattr(options, "dry_run", False)
        return (None if is_dry else finish_earlier(options)) or function(options)

    return finish_or_run


def _register(parent: App, options: type[StageConfig], place: int) -> None:
    def command(options: StageConfig, *, json: Json = False) -> Any:
        if launcher.rank() > 0 and not issubclass(type(options), TrainingConfig):
            return None  # of what is not training, one process does all
        with _only_result_on_stdout(json):
            result = stage_function(options.verb)(options)
        if launcher.rank() > 0:
            return None
        values = result.result() if hasattr(result, "result") else result
        return _finished(result, json, options.next_command(values) if isinstance(values, Mapping) else None)

    optional = all(field.default is not dataclasses.MISSING for field in dataclasses.fields(options))
    if optional:  # the library wants what may be left out whole to have a default
        command.__defaults__ = (options(),)
    command.__annotations__ = {"options": options, "json": Json}
    command.__doc__ = options.__doc__
    parent.command(command, name=options.verb.split()[-1], sort_key=place)


def _finished(result: Any, json: bool, following: str | None) -> Any:
    """Prints what a verb returned and, for people, the command that comes next."""
    presented = _present(result, json)
    if following and not json:
        console.stdout.print(f"{'next':>20}  {following}", markup=False)
    return presented


def _only_result_on_stdout(json: bool) -> AbstractContextManager[Any]:
    """With `--json`, whatever a library prints while a verb works goes to stderr: stdout is one JSON object."""
    return redirect_stdout(sys.stderr) if json else nullcontext()


def _present(result: Any, json: bool) -> Any:
    """Prints what a verb returned: an artifact, a mapping, a text, something with a form to be shown in, or nothing."""
    values = result.result() if hasattr(result, "result") else result
    if hasattr(result, "show") and not json:
        console.stdout.print(console.styled(result.show()))
        return values
    if values is None:
        return None
    if isinstance(values, str):
        print(json_module.dumps({"reply": values}, ensure_ascii=False) if json else values)  # noqa: T201
    elif json:
        print(json_module.dumps(values, ensure_ascii=False, default=str))  # noqa: T201  stdout is the result
    else:
        for key, value in _summary(values):
            console.stdout.print(f"{key:>20}  {value}", markup=False)
    return values


def _summary(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What fits a screen: numbers and words as they are, the number of things in a long list or mapping."""
    for key, value in list(values.items())[:_LINES]:
        if isinstance(value, str):
            text = value
        elif isinstance(value, float):
            text = f"{value:,.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            text = f"{value:,}"
        else:
            text = json_module.dumps(value, ensure_ascii=False, default=str)
        if len(text) > _WIDTH:
            size = f"{len(value):,} of them" if isinstance(value, list | dict) else f"{text[:_WIDTH]} …"
            text = f"{size} (whole with --json)"
        yield key, text + console.meaning(key)
    if len(values) > _LINES:
        yield "", f"{len(values) - _LINES} more with --json"


_groups = {
    "tokenizer": App(name="tokenizer", help="Trains, merges and audits tokenizers.", help_format="markdown", sort_key=1)
}
for _group in _groups.values():
    app.command(_group)
# Help lists the verbs in the order of the road.
for _place, (_verb, _options) in enumerate({**config.STAGES, **config.TOOLS}.items()):
    _register(_groups.get(_verb.split()[0], app), _options, _place)


@app.command(sort_key=-1)
def run(
    recipe: str,
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    set: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    json: Json = False,
) -> Any:
    """Runs the steps of a recipe; finished steps whose inputs and options are unchanged are skipped.

    Example: `yangtuo run quickstart --set pretrain.epochs=4`

    Parameters
    ----------
    recipe
        The recipe: a YAML file, or the name of one that comes with Yangtuo (see `yangtuo recipes`).
    dry_run
        Print the resolved plan and stop.
    set
        Overrides an option as STEP.KEY=VALUE, or the recipe's output as output=DIR; repeatable.
    """
    from yangtuo import catalog, pipeline

    file = catalog.find(recipe)
    plan = pipeline.load(file, set)
    if dry_run:
        pipeline.show(plan)
    if launcher.rank() == 0:
        pipeline.require_inputs(plan)
    with _only_result_on_stdout(json):
        results = {} if dry_run else pipeline.execute(plan, stage_function)
    if launcher.rank() > 0:
        return None
    values: dict[str, Any] = plan.to_dict() if dry_run and json else {}
    if results:
        report = pipeline.write_report(plan, results, f"run of {file.stem}", "配方运行")
        values = {name: str(artifact.path) for name, artifact in results.items()} if json else {"report": str(report)}
    return _finished(values, json, "the same command without --dry-run" if dry_run else plan.next_command())


@app.command(sort_key=-1)
def recipes(*, copy: str | None = None, json: Json = False) -> Any:
    """Lists the recipes that come with Yangtuo, or copies one here, to be edited and run.

    Example: `yangtuo recipes --copy smollm2-zh`

    Parameters
    ----------
    copy
        The recipe to write into this directory, as NAME.yaml; a file of that name is never overwritten.
    """
    from yangtuo import catalog

    if copy is not None:
        return _finished({"recipe": str(catalog.copy(copy))}, json, f"yangtuo run {copy}.yaml --dry-run")
    listed = [catalog.describe(file) for file in catalog.shipped().values()]
    if json:
        return _present({recipe["name"]: recipe for recipe in listed}, json)
    for recipe in listed:
        console.stdout.print(recipe["name"], style="bold", markup=False)
        console.stdout.print(f"    {recipe['about']}\n    Needs: {recipe['needs']}", markup=False)
    return _finished({}, json, "yangtuo run NAME --dry-run, or yangtuo recipes --copy NAME to change it first")


@app.command(sort_key=-2)
def quickstart(*, output: Path = Path("runs/quickstart"), json: Json = False) -> Any:
    """Walks the whole road on the embedded base in minutes: an English Llama learns Chinese.

    Example: `yangtuo quickstart --output runs/quickstart`

    Parameters
    ----------
    output
        The directory of all artifacts and of report.html; run again with the same one, finished steps are skipped.
    """
    from yangtuo.quickstart import road

    with _only_result_on_stdout(json):
        figures = road.run(output, stage_function)
    return _present(figures, json) if json else figures


def main() -> None:
    """Entry point of the `yangtuo` command."""
    if launcher.world_size() > 1:
        console.stderr.quiet = console.stdout.quiet = launcher.rank() > 0
        sys.excepthook = _show_once
    status = invoke(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: a second Ctrl-C has nothing to unwind
    if launcher.world_size() > 1:
        # One of many processes: all work is done and agreed on, and the threads of the process group now and then
        # abort in their destructors (gloo, torch 2.13), which the launcher would report as a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def invoke(arguments: list[str]) -> int:
    """Runs one command line; returns its exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(arguments or ["--help"])
    except CycloptsError as error:
        verb = _verb_of(arguments)
        stage = {**config.STAGES, **config.TOOLS}.get(verb)
        known = [field.name for field in dataclasses.fields(stage)] if stage else []
        problem = other_tools.hint_of_flags(arguments, known) or str(error)
        return _fail(ConfigError(problem, run=f"yangtuo {verb} --help".replace("  ", " ")))
    except UserError as error:
        return _fail(error)
    except KeyboardInterrupt:
        if not launcher.another_has_failed():
            console.note("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from yangtuo.files import explain

        told = explain(error)
        if told is None:
            raise
        return _fail(told)
    return 0


def _verb_of(arguments: list[str]) -> str:
    words = []
    for argument in arguments:
        if argument.startswith("-"):
            break
        words.append(argument)
    verbs = {*config.STAGES, *config.TOOLS, "run", "recipes", "quickstart", "tokenizer"}
    return next((verb for verb in (" ".join(words[:2]), " ".join(words[:1])) if verb in verbs), "")


def _interrupt(_signum: int, _frame: object) -> None:
    """SIGTERM unwinds as Ctrl-C does, so that half-written work is cleaned up or kept for a resumption."""
    if launcher.world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it again while this process unwinds
        if launcher.another_has_failed():
            os._exit(130)  # the group is broken, and what is written of a run is for the next one to go on from
    raise KeyboardInterrupt


def _fail(error: UserError) -> int:
    if launcher.is_first_to_fail():
        console.stderr.quiet = False
        console.stderr.print(console.plain(f"error: {error}"), markup=False, style="red")
        launcher.error_is_shown()
    return error.status


def _show_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of many processes, the first to fail shows its traceback; that the group broke is what follows from it."""
    if launcher.is_first_to_fail():
        sys.__excepthook__(kind, error, trace)
        launcher.error_is_shown()
