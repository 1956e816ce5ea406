"""Entities: strict matches over sets and multisets, equal to the published counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yangtuo.evaluation.entities import parse_entities, score_entities


def counts(figures: dict[str, Any]) -> tuple[int, int, int]:
    return figures["tp"], figures["fp"], figures["fn"]


def test_figures_are_those_that_were_counted_by_hand(shared_data: Path) -> None:
    folder = shared_data / "instruct" / "msra_scoring"
    load = lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))  # noqa: E731
    published = load("scores")
    references = load("gold")["answers"]
    for name, values in published["files"].items():
        figures = score_entities(load(name)["answers"], references)
        assert figures["num_exact_samples"] == values["samples_with_exact_set"]
        assert figures["num_malformed_lines"] == values["malformed_prediction_lines"]
        assert figures["by_type"].keys() == values["set_by_type"].keys()
        pairs = [(figures, values["set"]), (figures["multiset"], values["multiset"])]
        pairs += [(figures["by_type"][kind], expected) for kind, expected in values["set_by_type"].items()]
        for actual, expected in pairs:
            assert {key: actual[key] for key in expected} == pytest.approx(expected, abs=1e-9)


def test_an_entity_is_cut_at_its_last_underscore_and_lines_without_one_are_counted() -> None:
    parsed = parse_entities("a_b_地名\r\n 没有 \n\n北京\n_地名\n北京 _ 地名")
    assert dict(parsed.items) == {("a_b", "地名"): 1, ("北京", "地名"): 1}
    assert parsed.num_malformed == 2


def test_repeated_entities_count_once_in_sets_and_each_time_in_multisets() -> None:
    figures = score_entities(["北京_地名\n北京_地名\n北京_机构名"], ["北京_地名"])
    assert counts(figures) == (1, 1, 0)
    assert counts(figures["multiset"]) == (1, 2, 0)
    assert counts(figures["by_type"]["机构名"]) == (0, 1, 0)


def test_nothing_to_find_and_nothing_found_is_no_error() -> None:
    assert score_entities(["没有"], ["没有"])["f1"] == 0.0
