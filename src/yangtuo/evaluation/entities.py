"""Named entities from `instruct/query/answer` data: strict precision, recall and F1, micro and by type.

An answer is a line `text_type` for each entity, or `没有`. An entity counts as found when text and type are equal.
Figures are given over sets (an entity counts once a sample) and over multisets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yangtuo.evaluation.answers import Sample
from yangtuo.evaluation.extraction import Matches, match

_NONE = "没有"


@dataclass(frozen=True)
class Entities:
    """The entities of one answer, as (text, type), and how many of its lines were none."""

    items: Counter[tuple[str, str]]
    num_malformed: int


def parse_entities(answer: str) -> Entities:
    """Reads any text: a line is cut at its last `_`; one without text and type is counted as malformed and left out."""
    items: Counter[tuple[str, str]] = Counter()
    num_malformed = 0
    for line in map(str.strip, answer.replace("\r\n", "\n").split("\n")):
        if line and line != _NONE:
            text, _, kind = (part.strip() for part in line.rpartition("_"))
            if text and kind:
                items[text, kind] += 1
            else:
                num_malformed += 1
    return Entities(items, num_malformed)


def scorer(samples: Sequence[Sample]) -> Callable[[Sequence[str]], dict[str, Any]]:
    """What scores answers to a test set."""
    references = [sample.reference for sample in samples]
    return lambda answers: score_entities(answers, references)


def score_entities(predicted: Sequence[str], expected: Sequence[str]) -> dict[str, Any]:
    """Figures over sets, with those `by_type` and over `multiset`, of answers in the same order."""
    whole, multiset = Matches(), Matches()
    by_type: dict[str, Matches] = {}
    num_malformed = num_exact = 0
    for prediction, reference in zip(map(parse_entities, predicted), map(parse_entities, expected), strict=True):
        multiset += match(prediction.items, reference.items)
        left, right = set(prediction.items), set(reference.items)
        whole += match(Counter(left), Counter(right))
        for kind in sorted({kind for _, kind in left | right}):
            of_kind = (Counter(item for item in items if item[1] == kind) for items in (left, right))
            by_type[kind] = by_type.get(kind, Matches()) + match(*of_kind)
        num_malformed += prediction.num_malformed
        num_exact += left == right
    return {
        **whole.to_dict(),
        "by_type": {kind: by_type[kind].to_dict() for kind in sorted(by_type)},
        "multiset": multiset.to_dict(),
        "num_samples": len(predicted),
        "num_exact_samples": num_exact,
        "num_malformed_lines": num_malformed,
    }
