"""Evaluate: figures per model and data set, side by side, as an artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yangtuo import cli
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.config.merge import MergeConfig
from yangtuo.errors import ConfigError, EvaluationError, LineageError
from yangtuo.stages import evaluate, merge

from .test_serve import serving


def test_models_are_compared_on_the_same_text(pico_model: Path, pico_tied_model: Path, tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("你好，羊驼。", encoding="utf-8")
    config = EvaluateConfig(
        model=(f"one={pico_model}", f"two={pico_tied_model}"),
        suite="bits-per-byte",
        data=(str(tmp_path / "zh.txt"),),
        output=tmp_path / "scores",
    )
    artifact = evaluate.run(config)
    results = json.loads((artifact.path / "results.json").read_text("utf-8"))
    assert results["one"]["zh"]["num_bytes"] == results["two"]["zh"]["num_bytes"] == 18
    assert results["one"]["zh"]["bits_per_byte"] != results["two"]["zh"]["bits_per_byte"]
    assert artifact.manifest is not None
    assert set(artifact.manifest.parents) == {"one", "two"}


def test_questions_keep_every_reply(pico_model: Path, tmp_path: Path) -> None:
    """A figure that cannot be looked into proves nothing."""
    questions = [
        {"instruction": "Who?", "answers": ["nobody would say this"]},
        {"instruction": "Why?", "answers": [""]},
    ]
    (tmp_path / "q.json").write_text(json.dumps([{**questions[0]}, {**questions[1], "answers": ["zzz"]}]))
    config = EvaluateConfig(
        model=(str(pico_model),),
        suite="questions",
        data=(str(tmp_path / "q.json"),),
        output=tmp_path / "s",
        max_new_tokens=3,
    )
    results = json.loads((evaluate.run(config).path / "results.json").read_text("utf-8"))
    (figures,) = results.values()
    assert figures["q"]["num_right"] == 0
    assert [row["question"] for row in figures["q"]["replies"]] == ["Who?", "Why?"]


def test_two_models_of_one_name_are_refused(pico_model: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        model=(str(pico_model), str(pico_model)), suite="bits-per-byte", data=("x",), output=tmp_path / "s"
    )
    with pytest.raises(ConfigError, match="name of its own"):
        evaluate.run(config)


def test_finished_answers_are_scored_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = [{"instruct": "找", "query": name, "answer": f"{name}_人名"} for name in ("甲", "乙")]
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    (tmp_path / "answers.json").write_text(json.dumps([{"prediction": "甲_人名"}, {"prediction": "丙_地名"}]))
    arguments = ["evaluate", "--suite", "ner", "--data", str(tmp_path / "gold.json"), "--json"]
    assert cli.invoke([*arguments, "--predictions", str(tmp_path / "answers.json")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["precision"], result["recall"], result["f1"]) == (0.5, 0.5, 0.5)
    assert result["by_type"]["人名"]["recall"] == 0.5
    assert cli.invoke([*arguments, "--predictions", str(tmp_path / "gold.json"), "--output", str(tmp_path / "s")]) == 0
    assert json.loads(capsys.readouterr().out)["f1"] == 1.0
    replies = json.loads((tmp_path / "s" / "results.json").read_text("utf-8"))["gold"]["gold"]["replies"]
    assert [row["reply"] for row in replies] == ["甲_人名", "乙_人名"]


def test_a_served_model_answers_as_its_directory_does(
    pico_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what `predict` wrote of the same questions is scored the same: three ways to one figure."""
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    gold = [
        {"id": str(n), "instruct": "the cat", "query": name, "answer": "甲_人名"} for n, name in enumerate("甲乙丙")
    ]
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    arguments = ["evaluate", "--suite", "ner", "--data", str(tmp_path / "gold.json"), "--max-new-tokens", "5"]
    model = ["--model", str(pico_model), "--engine", "transformers", "--template", "alpaca"]
    with serving(*model) as (_, address):
        assert cli.invoke([*arguments, "--model", f"here={address}", "--output", str(tmp_path / "served")]) == 0
        assert cli.invoke([*arguments, "--model", address.removesuffix("/v1"), "--output", str(tmp_path / "bare")]) == 0
        refused = ["evaluate", "--suite", "bits-per-byte", "--data", str(tmp_path / "gold.json"), "--model", address]
        assert cli.invoke(refused) == 2
    assert "probabilities" in capsys.readouterr().err
    asked = ["--input", str(tmp_path / "gold.json"), "--output", str(tmp_path / "p.jsonl"), "--max-new-tokens", "5"]
    assert cli.invoke(["predict", *model, *asked]) == 0
    scored = ["--predictions", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "scored")]
    assert cli.invoke([*arguments, *scored]) == 0
    ways = [json.loads((tmp_path / name / "results.json").read_text("utf-8")) for name in ("served", "bare", "scored")]
    assert len({json.dumps(list(results.values())) for results in ways}) == 1
    assert list(ways[0]) == ["here"]
    assert any(row["reply"] for row in ways[0]["here"]["gold"]["replies"])


def test_promptcblue_asks_the_model_and_writes_what_the_competition_takes(pico_model: Path, tmp_path: Path) -> None:
    labels = {"answer_choices": ["是的", "不是"], "task_type": "matching", "task_dataset": "CHIP-STS"}
    rows = [{"input": "一样吗？", "target": "是的", "sample_id": f"dev-{number}", **labels} for number in range(3)]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = EvaluateConfig(
        model=(f"pico={pico_model}",),
        suite="promptcblue",
        data=(str(tmp_path / "gold.jsonl"),),
        output=tmp_path / "scores",
        max_new_tokens=4,
        batch_size=2,
    )
    artifact = evaluate.run(config)
    result = artifact.result()
    assert result["overall"] == result["tasks"]["CHIP-STS"]["f1"] == 0.0
    submitted = json.loads((artifact.path / "submission-pico-gold.json").read_text("utf-8"))
    assert [row["sample_id"] for row in submitted["CHIP-STS"]] == ["dev-0", "dev-1", "dev-2"]
    replies = json.loads((artifact.path / "results.json").read_text("utf-8"))["pico"]["gold"]["replies"]
    assert [row["answer"] for row in submitted["CHIP-STS"]] == [row["reply"] for row in replies]
    assert all(row["reply"] for row in replies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "ner"}, "neither --model nor --predictions"),
        ({"suite": "ner", "model": ("m",), "predictions": "p.json"}, "--model and --predictions"),
        ({"suite": "bits-per-byte", "predictions": "p.json"}, "ner or promptcblue"),
        ({"suite": "ner", "predictions": "p.json", "data": ("a", "b")}, "ner or promptcblue"),
        ({"suite": "forgetting", "model": ("m",)}, "compares models"),
        ({"suite": "bits-per-byte", "model": ("m",), "max_english_loss": 0.1}, "--max-english-loss"),
    ],
)
def test_what_is_measured_must_be_clear(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluate.run(EvaluateConfig(**{"data": ("gold.json",), **options}))
    assert message in str(raised.value)


def forgetting_config(model: Path, other: Path, folder: Path, output: Path, limit: float | None) -> EvaluateConfig:
    (folder / "english.txt").write_text("The cat sat.\n\nA dog ran to the river.\n\nShe bought three apples.")
    (folder / "logic_val.csv").write_text("id,question,A,B,C,D,answer\n0,q,a,b,c,d,A\n1,r,a,b,c,d,C\n")
    return EvaluateConfig(
        model=(f"base={model}", f"later={other}"),
        suite="forgetting",
        data=(f"en={folder / 'english.txt'}", f"ceval={folder / 'logic_val.csv'}"),
        output=output,
        max_english_loss=limit,
    )


def test_forgetting_compares_item_by_item(pico_model: Path, pico_tied_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    config = forgetting_config(pico_model, pico_tied_model, tmp_path, tmp_path / "scores", None)
    artifact = evaluate.run(config)
    results = json.loads((artifact.path / "results.json").read_text("utf-8"))
    compared = artifact.result()["forgetting"]["later"]
    figures = [results[name]["en"]["bits_per_byte"] for name in ("base", "later")]
    assert compared["en"]["difference"] == pytest.approx(figures[1] - figures[0], abs=2e-4)
    assert compared["en"]["lost"] == pytest.approx(figures[1] / figures[0] - 1, abs=2e-4)
    right = [[reply["right"] for reply in results[name]["ceval"]["replies"]] for name in ("base", "later")]
    assert compared["ceval"]["difference"] == (sum(right[1]) - sum(right[0])) / 2


def test_a_gate_refuses_lost_english_and_keeps_the_figures(
    pico_model: Path, pico_tied_model: Path, tmp_path: Path
) -> None:
    """A recipe must stop here, also when it is run again; what was measured may have taken hours."""
    pytest.importorskip("lm_eval")
    config = forgetting_config(pico_model, pico_tied_model, tmp_path, tmp_path / "free", None)
    lost = evaluate.run(config).result()["forgetting"]["later"]["en"]["lost"]
    better, worse = (pico_model, pico_tied_model) if lost > 0 else (pico_tied_model, pico_model)
    config = forgetting_config(better, worse, tmp_path, tmp_path / "scores", 0.0)
    for number in (1, 2):
        with pytest.raises(EvaluationError, match="English was lost"):
            evaluate.run(config)
        assert not (tmp_path / "scores").exists()
        assert (tmp_path / f"scores-refused-{number}" / "results.json").is_file()
    assert evaluate.run(forgetting_config(worse, better, tmp_path, tmp_path / "scores", 0.0)).path.is_dir()


def test_an_adapter_is_put_on_the_last_model(
    pico_model: Path, pico_tied_model: Path, train_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Unmerged as merged: the same text, the same exam, and never on a model that it was not trained on."""
    pytest.importorskip("lm_eval")
    adapter = train_adapter(tmp_path / "adapter", pico_model)
    merge.run(MergeConfig(base=str(pico_model), adapter=(str(adapter),), output=tmp_path / "merged"))
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog ran to the river.")
    (tmp_path / "logic_val.csv").write_text("id,question,A,B,C,D,answer\n0,q,a,b,c,d,A\n1,r,a,b,c,d,C\n")
    results = {}
    for name, options in {
        "unmerged": {"model": (f"base={pico_model}", f"later={pico_model}"), "adapter": str(adapter)},
        "merged": {"model": (f"base={pico_model}", f"later={tmp_path / 'merged'}")},
    }.items():
        data = (f"en={tmp_path / 'text.txt'}", f"ceval={tmp_path / 'logic_val.csv'}")
        made = evaluate.run(
            EvaluateConfig(**options, suite="forgetting", data=data, output=tmp_path / f"{name}-scores")
        )
        results[name] = json.loads((made.path / "results.json").read_text("utf-8"))
    assert set(made.manifest.parents) == {"base", "later"}
    unmerged, merged = results["unmerged"], results["merged"]
    assert unmerged["base"]["en"] == merged["base"]["en"]
    assert unmerged["later"]["en"]["bits_per_byte"] == pytest.approx(merged["later"]["en"]["bits_per_byte"], abs=2e-4)
    assert unmerged["later"]["en"]["bits_per_byte"] != unmerged["base"]["en"]["bits_per_byte"]
    for one, other in zip(unmerged["later"]["ceval"]["replies"], merged["later"]["ceval"]["replies"], strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-3)
    with pytest.raises(LineageError):
        evaluate.run(
            EvaluateConfig(
                model=(str(pico_tied_model),),
                adapter=str(adapter),
                suite="bits-per-byte",
                data=(str(tmp_path / "text.txt"),),
            )
        )
