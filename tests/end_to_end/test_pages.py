"""Every command of README and tutorials, as it is typed, in order, in a fresh directory: a newcomer's first days.

Models and texts are small and stand under the names that the pages use. What is typed otherwise than on the page is in
one table, `SUBSTITUTIONS`. Every page begins where README's road has ended. `make newcomer` runs this file with the
package as a wheel installs it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pages import PAGES, Command, commands

import yangtuo
from yangtuo import cli

README, *TUTORIALS = PAGES
# Libraries of lm_eval's and gradio's own, while they are imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning"),
    pytest.mark.timeout(1200),  # some twenty commands a page, on a machine that may be busy
]

SUBSTITUTIONS = {
    "--size 8000": "--size 120",  # the texts are small
    "--size 4000": "--size 120",
    "--training-tokens 5000000": "--training-tokens 50000",
    "--once": "--max-new-tokens 16 --once",  # a random model never ends
    "predict --model": "predict --max-new-tokens 16 --model",
    ":8000": ":{port}",  # a free one
    "--port 8000": "--port {port}",
}


def typed(command: Command, port: int) -> Command:
    """The command with everything substituted that `SUBSTITUTIONS` names."""
    line = command.line
    for before, after in SUBSTITUTIONS.items():
        line = line.replace(before, after.format(port=port))
    return Command(line, command.mark)


@pytest.fixture(scope="module")
def inputs(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a newcomer brings: LLaMA's weights, texts, conversations, questions, exams, published adapters."""
    place = tmp_path_factory.mktemp("inputs")
    assert (
        cli.invoke(["export", "--model", str(pico_model), "--format", "meta", "--output", str(place / "llama/7B")]) == 0
    )
    _write_texts(place)
    _write_exams(place)
    _write_published(place, pico_model)
    return place


@pytest.fixture(scope="module")
def road(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which README's commands have been run, and what the pages want beside."""
    place = tmp_path_factory.mktemp("road") / "home"
    shutil.copytree(inputs, place)
    walk(README, place)
    _add_others_work(place)
    return place


def test_the_road_of_the_readme_ends_with_a_model_that_was_measured(road: Path) -> None:
    scores = json.loads((road / "scores/results.json").read_text("utf-8"))
    assert set(scores) == {"base", "zh-chat"}
    assert scores["zh-chat"]["zh"]["tokens_per_character"] < scores["base"]["zh"]["tokens_per_character"]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_command_of_a_page_works(page: Path, road: Path, tmp_path: Path) -> None:
    place = tmp_path / "home"
    shutil.copytree(road, place)
    walk(page, place)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_of_commands_that_need_more_than_a_laptop_exist(page: Path) -> None:
    for command in commands(page):
        if command.mark == "parsed" and command.ours is not None:
            cli.app.parse_args(command.ours, print_error=False, exit_on_error=False)


def walk(page: Path, place: Path) -> None:
    """Runs the commands of `page` in the directory `place`, which is the newcomer's home too."""
    port = _free_port()
    steps = [typed(command, port) for command in commands(page) if command.mark in ("run", "server")]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as servers:
        patch.chdir(place)
        patch.setenv("HOME", str(place))
        patch.setenv("YANGTUO_CACHE", str(place / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for command in steps:
            if command.mark == "server":
                servers.enter_context(_served(command, port))
            elif command.words[0] != "make":
                assert _run(command, patch) == 0, command.line


def _run(command: Command, patch: pytest.MonkeyPatch) -> int:
    """The exit status; commands of ours run in this process, which has its libraries loaded."""
    with patch.context() as variables:
        for name, value in command.variables.items():
            variables.setenv(name, value)
        if command.words[0] == "yangtuo":
            return cli.invoke(command.words[1:])
        assert command.words[0] in ("torchrun", "curl"), f"{command.line}: a block of other programs wants a mark"
        words = command.words
        if words[0] == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        elif shutil.which("curl"):
            words = [words[0], "--fail", *words[1:]]
        else:
            return 0
        return subprocess.run(words, check=False).returncode


@contextlib.contextmanager
def _served(command: Command, port: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "yangtuo", *command.words[1:]])
    try:
        for _ in range(600):
            assert process.poll() is None, command.line
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_texts(place: Path) -> None:
    source = Path(yangtuo.__file__).parent / "quickstart" / "texts"
    for language, count in (("zh", 6), ("en", 6)):
        files = sorted((source / language).iterdir())
        (place / "texts" / language).mkdir(parents=True)
        for path in files[:count]:
            shutil.copy(path, place / "texts" / language)
        held_out = place / {"zh": "held-out.txt", "en": "held-out-en.txt"}[language]
        held_out.write_text(files[count].read_text("utf-8")[:600], encoding="utf-8")
    rows = json.loads((source / "questions" / "town.json").read_text("utf-8"))[:24]
    english = [{"instruction": f"How many are {n} and one?", "output": f"They are {n + 1}."} for n in range(24)]
    turns = [
        {"conversations": [{"from": "human", "value": row["instruction"]}, {"from": "gpt", "value": row["output"]}]}
        for row in rows
    ]
    for name, content in {"alpaca_zh": rows, "alpaca_en": english, "sharegpt": turns}.items():
        (place / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (place / "questions.txt").write_text("你好\n今天天气怎么样？\n", encoding="utf-8")


def _write_exams(place: Path) -> None:
    questions = [
        ["What is green?", "grass", "snow", "coal", "milk", "A"],
        ["What is white?", "coal", "snow", "grass", "ink", "B"],
    ]
    for split in ("test", "dev"):
        _write_rows(place / f"mmlu/{split}/anatomy_{split}.csv", questions)
    names = ["id", "question", "A", "B", "C", "D", "answer"]
    for split, more in (("val", []), ("dev", ["explanation"])):
        rows = [[str(number), *row, *more] for number, row in enumerate(questions)]
        _write_rows(place / f"ceval/{split}/logic_{split}.csv", [[*names, *more], *rows])


def _write_rows(file: Path, rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def _write_published(place: Path, base: Path) -> None:
    """Pieces as published, and two adapters on top of each other, with all rows of a grown vocabulary."""
    import sentencepiece
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lines = [line for path in sorted((place / "texts/zh").iterdir()) for line in path.read_text("utf-8").splitlines()]
    with (place / "chinese_sp.model").open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=writer, vocab_size=1200, hard_vocab_limit=False, minloglevel=2
        )
    arguments = ["tokenizer", "merge", "--base", str(base), "--pieces", str(place / "chinese_sp.model")]
    arguments += ["--style", "published"]
    names = ("chinese-llama-lora-7b", "chinese-alpaca-lora-7b")
    for name, more in zip(names, ([], ["--add-token", "[PAD]"]), strict=True):
        assert cli.invoke([*arguments, *more, "--output", str(place / name)]) == 0
        (place / name / "yangtuo.json").unlink()
    num_rows = 0
    for name in names:
        with torch.random.fork_rng(), _quiet():
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_pretrained(base)
            num_rows = max(len(_pieces(place / name)), num_rows)
            model.resize_token_embeddings(num_rows)
            layers = ["q_proj", "v_proj"]
            config = LoraConfig(r=2, target_modules=layers, modules_to_save=["embed_tokens", "lm_head"])
            get_peft_model(model, config).save_pretrained(place / name)
    zipped = place / f"{names[1]}.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in sorted((place / names[1]).iterdir()):
            archive.write(path, path.name)
    shutil.rmtree(place / names[1])


def _add_others_work(place: Path) -> None:
    """What some pages find beside the road: another tool's adapter, one to be served by name, an instruct model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from yangtuo.data.template import get_template

    for model, adapter in (("zh", "llama-factory/lora"), ("zh-chat", "adapters/polite")):
        with _quiet():
            tuned = get_peft_model(
                AutoModelForCausalLM.from_pretrained(place / "models" / model),
                LoraConfig(r=2, target_modules=["q_proj"]),
            )
            tuned.save_pretrained(place / adapter)
    shutil.copytree(place / "models/base", place / "models/instruct")
    (place / "models/instruct/yangtuo.json").unlink()
    template = get_template("alpaca", None).render_jinja()
    (place / "models/instruct/chat_template.jinja").write_text(template, encoding="utf-8")


def _pieces(directory: Path) -> Any:
    from yangtuo.vocab.encoding import load_encoder

    return load_encoder(directory).pieces


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
