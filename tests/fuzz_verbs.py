"""Every verb on inputs that a stranger could have made: one process a run, a seed a run, and what is promised of each.

    python tests/fuzz_verbs.py --count 2000 --seed 0 [--only SEED]

Good inputs of all kinds are made once. A seed picks a verb, one of its input files and a fault; the command runs in a
process forked from this one, which has the libraries loaded. Held against each run: it ends by itself within 30
seconds and 2 GB with status 0 or 2, prints no traceback and one error, connects to nothing outside, runs no code that
the input brought, leaves nothing under the output's name that it refused, and refuses what cannot be right. Prints one
line for each run that broke a promise, and a JSON object at the end; exits with 1 where there was one.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

SECONDS, GIGABYTES = 30, 2.0
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 31, 1 << 62, 10**30, 1.5, 1e308, float("inf"), float("nan")),
    *("", "x", "../../etc/passwd", "/dev/zero", "(.+)+!", "((", "\x1b[2J", "羊驼", "{{ 9**9**9 }}", "a" * 100_000),
    *([], {}, [[[[]]]], ["x"], {"x": 1}),
)
TEXT = "The river runs by the town. 从前有一个小女孩住在河边，她每天都去市场买苹果。今天天气很好，我们去公园散步。\n"
CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Config: pass\nclass Model: pass\n"


class Command(NamedTuple):
    verb: str
    inputs: tuple[str, ...]
    """Names of what stands in the world's directory; a copy of each is attacked."""
    arguments: tuple[str, ...]


COMMANDS = (
    Command("convert", ("model",), ("convert", "--source", "model", "--output", "out")),
    Command("convert", ("bin",), ("convert", "--source", "bin", "--output", "out")),
    Command("convert", ("m.gguf",), ("convert", "--source", "m.gguf", "--output", "out")),
    Command("convert", ("meta",), ("convert", "--source", "meta", "--output", "out")),
    Command("inspect", ("model",), ("inspect", "model", "--verify")),
    Command("inspect", ("adapter",), ("inspect", "adapter", "--json")),
    Command(
        "tokenizer train",
        ("model", "texts"),
        ("tokenizer", "train", "--base", "model", "--corpus", "texts", "--size", "20", "--output", "out"),
    ),
    Command(
        "tokenizer merge",
        ("model", "pieces"),
        ("tokenizer", "merge", "--base", "model", "--pieces", "pieces", "--output", "out"),
    ),
    Command(
        "tokenizer audit",
        ("tokenizer", "model", "texts"),
        ("tokenizer", "audit", "--tokenizer", "tokenizer", "--base", "model", "--text", "texts", "--output", "out"),
    ),
    Command(
        "expand",
        ("model", "tokenizer", "texts"),
        ("expand", "--model", "model", "--tokenizer", "tokenizer", "--text", "texts", "--output", "out"),
    ),
    Command(
        "prepare",
        ("texts", "tokenizer"),
        ("prepare", "--source", "zh=texts", "--tokenizer", "tokenizer", "--block-size", "32", "--output", "out"),
    ),
    Command(
        "pretrain",
        ("grown", "data"),
        ("pretrain", "--model", "grown", "--data", "data", "--max-steps", "1", "--output", "out"),
    ),
    Command(
        "sft",
        ("grown", "rows.json"),
        (
            *("sft", "--model", "grown", "--data", "rows.json", "--template", "alpaca"),
            "--max-steps",
            "1",
            "--output",
            "out",
        ),
    ),
    Command("merge", ("grown", "adapter"), ("merge", "--base", "grown", "--adapter", "adapter", "--output", "out")),
    Command("export", ("model",), ("export", "--model", "model", "--format", "gguf", "--output", "out")),
    Command(
        "evaluate",
        ("model", "held.txt"),
        ("evaluate", "--model", "model", "--suite", "bits-per-byte", "--data", "en=held.txt", "--output", "out"),
    ),
    Command(
        "evaluate",
        ("gold.jsonl", "predictions.jsonl"),
        ("evaluate", "--suite", "ner", "--predictions", "predictions.jsonl", "--data", "gold.jsonl"),
    ),
    Command(
        "chat",
        ("grown", "adapter"),
        ("chat", "--model", "grown", "--adapter", "adapter", "--once", "你好", "--max-new-tokens", "4"),
    ),
    Command(
        "predict",
        ("model", "prompts.jsonl"),
        ("predict", "--model", "model", "--input", "prompts.jsonl", "--output", "out", "--max-new-tokens", "4"),
    ),
    Command("serve", ("model",), ("serve", "--model", "model", "--port", "PORT")),
    Command("run", ("recipe.yaml", "model", "texts", "held.txt"), ("run", "recipe.yaml")),
    Command("run", ("recipe-out", "recipe.yaml", "model", "texts", "held.txt"), ("run", "recipe.yaml")),
    Command("inspect", ("data",), ("inspect", "data", "--verify")),
    Command("export", ("model",), ("export", "--model", "model", "--format", "meta", "--output", "out")),
    Command(
        "publish",
        ("adapter", "grown", "data"),
        ("publish", "--artifact", "adapter", "--to", "me/x", "--licence", "mit", "--card", "out", "--dry-run"),
    ),
    Command(
        "publish",
        ("grown", "tokenizer", "scores"),
        (
            *("publish", "--artifact", "grown", "--to", "me/x", "--licence", "mit", "--card", "out", "--dry-run"),
            *("--scores", "scores"),
        ),
    ),
)


def build(world: Path) -> None:
    """Good inputs of all kinds, by the verbs themselves where there is one."""
    import torch
    from transformers import LlamaForCausalLM

    from tests.conftest import SENTENCES, train_pico_sentencepiece, write_pico_model
    from yangtuo.vocab.directory import write_sentencepiece

    write_sentencepiece(world / "base", train_pico_sentencepiece())
    write_pico_model(world / "model", world / "base", tied=False)
    shutil.copytree(world / "model", world / "bin")
    state = LlamaForCausalLM.from_pretrained(world / "model").state_dict()
    (world / "bin" / "model.safetensors").unlink()
    torch.save(state, world / "bin" / "pytorch_model.bin")
    (world / "texts").mkdir()
    for name in "ab":
        (world / "texts" / f"{name}.txt").write_text(TEXT * 20 + "\n".join(SENTENCES) + "\n", encoding="utf-8")
    (world / "held.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    rows = [
        {"instruction": f"How many are {n}?", "input": "", "output": f"They are {n}. 一共{n}个。"} for n in range(20)
    ]
    (world / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    gold = [{"instruct": "找出人名", "query": f"李明{n}在北京", "answer": "李明_人名\n北京_地名"} for n in range(6)]
    _write_lines(world / "gold.jsonl", gold)
    _write_lines(world / "predictions.jsonl", [{"id": str(n), "target": "李明_人名"} for n in range(6)])
    _write_lines(world / "prompts.jsonl", [{"id": str(n), "prompt": f"How many are {n}?"} for n in range(4)])
    recipe = {
        "output": "recipe-out",
        "steps": {
            "convert": {"source": "model"},
            "prepare": {"source": ["a=texts"], "tokenizer": "${convert}", "block_size": 32},
            "pretrain": {"model": "${convert}", "data": "${prepare}", "max_steps": 1},
            "evaluate": {"model": ["${convert}"], "suite": "bits-per-byte", "data": ["en=held.txt"]},
        },
    }
    (world / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    here = str(world)
    for arguments in (
        ("export", "--model", "model", "--format", "gguf", "--output", "gguf"),
        ("export", "--model", "model", "--format", "meta", "--output", "meta"),
        ("tokenizer", "train", "--base", "model", "--corpus", "texts", "--size", "20", "--output", "pieces"),
        ("tokenizer", "merge", "--base", "model", "--pieces", "pieces", "--output", "tokenizer"),
        ("expand", "--model", "model", "--tokenizer", "tokenizer", "--text", "texts", "--output", "grown"),
        ("prepare", "--source", "zh=texts", "--tokenizer", "grown", "--block-size", "32", "--output", "data"),
        ("pretrain", "--model", "grown", "--data", "data", "--max-steps", "1", "--output", "adapter"),
        (
            *("evaluate", "--model", "model", "--model", "grown", "--suite", "forgetting"),
            *("--data", "en=held.txt", "--output", "scores"),
        ),
        ("run", "recipe.yaml"),
    ):
        if run(list(arguments), here).status != 0:
            raise SystemExit(f"the good input of {arguments} cannot be made")
    shutil.copy(next((world / "gguf").glob("*.gguf")), world / "m.gguf")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


class Fault(NamedTuple):
    """What was done to an input."""

    told: str
    is_certain: bool
    """Whether weights are no longer right, so that no verb that reads them can take them."""


def spoil(chance: random.Random, target: Path, canary: Path) -> Fault:
    """One fault in a file, or in a file of a directory."""
    if target.is_dir():
        files = sorted(path for path in target.rglob("*") if path.is_file() and path.suffix not in (".html", ".lock"))
        path = chance.choice(files)
        if path.suffix in (".safetensors", ".bin") and chance.random() < 0.1:
            return plant(target, path, canary)
    else:
        path = target
    if chance.random() < 0.2:
        return replace(chance, path)
    by_suffix: dict[str, Callable[[random.Random, Path], Fault]] = {
        ".json": spoil_json,
        ".jsonl": spoil_json,
        ".yaml": spoil_json,
        ".safetensors": spoil_safetensors,
    }
    return by_suffix.get(path.suffix, spoil_bytes)(chance, path)


def plant(directory: Path, weights: Path, canary: Path) -> Fault:
    """Code that runs if the directory is loaded as its config, or its pickle, asks for."""
    import pickle

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(canary),))

    if weights.suffix == ".bin":
        weights.write_bytes(pickle.dumps({"model.norm.weight": Attack()}))
        return Fault("a pickle with code", weights.name == "pytorch_model.bin")
    config = directory / "config.json"
    if not config.exists():
        return Fault("nothing", False)
    for name in ("evil_config.py", "evil_model.py", "evil_tokenizer.py"):
        (directory / name).write_text(CODE.format(str(canary)), encoding="utf-8")
    names = {"AutoConfig": "evil_config.Config", "AutoModelForCausalLM": "evil_model.Model"}
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"auto_map": names}), encoding="utf-8")
    return Fault("auto_map with code", False)


def replace(chance: random.Random, path: Path) -> Fault:
    """Something else stands under the file's name."""
    kind = chance.choice(("nothing", "empty", "pipe", "directory", "zero", "outside", "pointer", "sparse", "utf-16"))
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "zero":
            path.symlink_to("/dev/zero")
        case "outside":
            path.symlink_to("/etc/hostname")
        case "pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
        case "sparse":
            with path.open("wb") as file:
                file.write(content)
                file.truncate(64 << 30)
        case "utf-16":
            path.write_bytes(content.decode("latin-1").encode("utf-16"))
    is_weights = path.suffix in (".safetensors", ".bin", ".gguf", ".pth")
    return Fault(f"{path.name} is {kind}", is_weights)


def spoil_json(chance: random.Random, path: Path) -> Fault:
    """One to three values replaced, removed or doubled; or bytes that no parser likes."""
    text = path.read_text(encoding="utf-8")
    if chance.random() < 0.25:
        start = chance.randrange(len(text) + 1)
        junk = chance.choice(
            ("\ud800", "[" * 100_000, "9" * 5000, "\x00", '"', "}", ",,", "&a [*a,*a]", "\ufeff", "!!python/x ")
        )
        spoiled = text[:start] + junk + text[start + chance.randrange(3) :]
        path.write_bytes(spoiled.encode("utf-8", "surrogatepass"))
        return Fault(f"{path.name}: {junk[:12]!r} at {start}", False)
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(mutate(chance, json.loads(lines[at])))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(mutate(chance, json.loads(text))), encoding="utf-8")
    return Fault(f"{path.name}: values changed", False)


def mutate(chance: random.Random, value: Any) -> Any:
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        spots = places(value)
        if not spots:
            return value
        *way, last = chance.choice(spots)
        holder = value
        for key in way:
            holder = holder[key]
        act = chance.random()
        if act < 0.6:
            holder[last] = copy.deepcopy(chance.choice(ODD))
        elif isinstance(holder, dict):
            del holder[last]
        else:
            holder.append(holder[last])
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value; long lists by their first entries."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [deep for key in list(value)[:40] for deep in places(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [deep for index in range(min(len(value), 5)) for deep in places(value[index], (*path, index))]
    return found


def spoil_safetensors(chance: random.Random, path: Path) -> Fault:
    """A tensor lost, of another shape or of whole numbers; a header that lies; an end cut off."""
    from safetensors.torch import load_file, save_file

    kind = chance.choice(("lost", "shape", "integers", "header", "cut", "bytes"))
    if kind in ("lost", "shape", "integers"):
        tensors = load_file(path)
        name = chance.choice(sorted(tensors))
        tensor = tensors.pop(name)
        if kind == "shape":
            tensors[name] = tensor[:-1].clone()
        elif kind == "integers":
            tensors[name] = tensor.int()
        save_file(tensors, path)
        return Fault(f"{path.name}: {name} {kind}", True)
    raw = path.read_bytes()
    if kind == "cut":
        path.write_bytes(raw[: chance.randrange(len(raw))])
        return Fault(f"{path.name}: cut", True)
    if kind == "bytes":
        return spoil_bytes(chance, path)
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(mutate(chance, json.loads(raw[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    return Fault(f"{path.name}: header changed", False)


def spoil_bytes(chance: random.Random, path: Path) -> Fault:
    """Bytes changed, most of them near the beginning; or the end cut off."""
    raw = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        path.write_bytes(raw[: chance.randrange(len(raw))])
        return Fault(f"{path.name}: cut", path.suffix in (".safetensors", ".bin", ".pth"))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(min(len(raw), chance.choice((64, 1024, len(raw)))))
        raw[at] = chance.randrange(256)
    path.write_bytes(raw)
    return Fault(f"{path.name}: bytes changed", False)


class Outcome(NamedTuple):
    status: int | None
    """None where it did not end in time."""
    seconds: float
    gigabytes: float
    output: str
    connected: str


def run(arguments: list[str], place: str) -> Outcome:
    """One command line in a process of its own, in the directory `place`."""
    log, network = Path(place) / ".log", Path(place) / ".network"
    if "PORT" in arguments:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [str(port) if word == "PORT" else word for word in arguments]
    log.touch()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, place, log, network)
    status, used, is_stopped = None, None, False
    while time.monotonic() - start < SECONDS:
        ended, code, used = os.wait4(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        if arguments[0] == "serve" and not is_stopped and "/v1 (" in log.read_text("utf-8", "replace"):
            _ask(port)
            os.kill(child, signal.SIGINT)
            is_stopped = True
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        _, _, used = os.wait4(child, 0)
    connected = network.read_text() if network.exists() else ""
    gigabytes = used.ru_maxrss / 1e6 if used else 0.0
    return Outcome(status, time.monotonic() - start, gigabytes, log.read_text("utf-8", "replace"), connected)


def _be_the_command(arguments: list[str], place: str, log: Path, network: Path) -> None:
    """Turns a forked process into `yangtuo ARGUMENTS`, with its output in `log` and its connections in `network`."""
    os.chdir(place)
    os.setsid()
    os.environ["YANGTUO_CACHE"] = str(Path(place) / ".cache")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            where = str(values[1:] if event == "socket.connect" else values[0])
            if "127.0.0.1" not in where and "localhost" not in where:
                network.write_text(where)

    sys.addaudithook(watch)
    from yangtuo.cli import invoke

    try:
        status = invoke(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  the verdict on what escaped is the parent's
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _ask(port: int) -> None:
    """One question to a server, whatever it answers."""
    body = json.dumps({"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)
    request.add_header("Content-Type", "application/json")
    try:
        urllib.request.urlopen(request, timeout=5).read()
    except OSError:
        return


def judge(command: Command, fault: Fault, outcome: Outcome, place: Path, canary: Path) -> list[str]:
    """The promises that a run broke."""
    broken = []
    is_stopped_server = command.verb == "serve" and outcome.status == 130
    # Weights may be whole and compute no numbers: 1 is the status of an engine that failed and says so.
    has_failed = outcome.status == 1 and "error: the model computes no numbers" in outcome.output
    if outcome.status is None:
        broken.append("did not end")
    elif outcome.status not in (0, 2) and not is_stopped_server and not has_failed:
        broken.append(f"status {outcome.status}")
    if "Traceback" in outcome.output:
        broken.append("traceback")
    if outcome.gigabytes > GIGABYTES:
        broken.append(f"{outcome.gigabytes:.1f} GB")
    if canary.exists():
        broken.append("code ran")
    if outcome.connected:
        broken.append(f"connected to {outcome.connected}")
    if outcome.status == 2 and "error:" not in outcome.output:
        broken.append("no message")
    if outcome.status == 2 and (place / "out").exists():
        broken.append("an output of what was refused")
    # A recipe's finished steps are skipped, and what is published has been hashed; nobody reads their parents' weights.
    skips = command.verb == "run" and "recipe-out" in command.inputs
    reads_weights = not skips and not command.verb.startswith(("tokenizer", "prepare", "inspect", "publish"))
    if outcome.status == 0 and fault.is_certain and reads_weights:
        broken.append("taken")
    return broken


def attack(seed: int, world: Path, place: Path) -> tuple[Command, Fault, Outcome, list[str]]:
    """The run of one seed, in the directory `place`, which is made and removed."""
    chance = random.Random(seed)
    command = chance.choice(COMMANDS)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in command.inputs:
        if (world / name).is_dir():
            shutil.copytree(world / name, place / name)
        else:
            shutil.copy(world / name, place / name)
    canary = place / "canary"
    fault = spoil(chance, place / chance.choice(command.inputs), canary)
    outcome = run(list(command.arguments), str(place))
    return command, fault, outcome, judge(command, fault, outcome, place, canary)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="one seed, with the command's output")
    options = parser.parse_args()
    import yangtuo.stages  # noqa: F401  what every run needs, loaded once
    from yangtuo.cli import stage_function
    from yangtuo.config import STAGES, TOOLS

    for verb in {**STAGES, **TOOLS}:
        stage_function(verb)
    statuses: Counter[str] = Counter()
    most, longest, num_broken = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as directory:
        world, place = Path(directory) / "world", Path(directory) / "run"
        world.mkdir()
        build(world)
        for seed in [options.only] if options.only is not None else range(options.seed, options.seed + options.count):
            command, fault, outcome, broken = attack(seed, world, place)
            statuses[f"{command.verb} {outcome.status}"] += 1
            most, longest = max(most, outcome.gigabytes), max(longest, outcome.seconds)
            if broken:
                num_broken += 1
                last = outcome.output.partition("Traceback")[2].strip().splitlines()[-8:]
                last = last or outcome.output.strip().splitlines()[-1:]
                print(f"seed {seed}: {command.verb}: {fault.told}: {', '.join(broken)}: {last}", flush=True)  # noqa: T201
            if options.only is not None:
                print(f"{command}\n{fault}\n{outcome.output}")  # noqa: T201
    summary = {
        "runs": statuses.total(),
        "broken": num_broken,
        "most_gigabytes": round(most, 2),
        "longest_seconds": round(longest, 1),
        "statuses": dict(sorted(statuses.items())),
    }
    print(json.dumps(summary))  # noqa: T201
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
