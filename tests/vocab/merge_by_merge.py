"""Byte-level BPE as the format's definition says (Sennrich et al. 2016), independent of any engine: a reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers


def merge_by_merge(content: Mapping[str, Any]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Ids of texts by the byte-level BPE of the tokenizer.json `content`, merges applied one by one."""
    model = content["model"]
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    never = len(ranks)
    vocabulary: Mapping[str, int] = model["vocab"]
    whole = bool(model.get("ignore_merges"))

    @lru_cache(maxsize=1 << 18)
    def word_ids(word: str) -> tuple[int, ...]:
        if whole and word in vocabulary:
            return (vocabulary[word],)
        parts = list(word)
        found = [ranks.get(pair, never) for pair in pairwise(parts)]
        while found and (best := min(found)) != never:
            at = found.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            del found[at]
            for pair in range(max(at - 1, 0), min(at + 1, len(found))):
                found[pair] = ranks.get((parts[pair], parts[pair + 1]), never)
        return tuple(vocabulary[part] for part in parts if part in vocabulary)

    cutter = Tokenizer.from_str(json.dumps(content))
    normalizer, splitter = cutter.normalizer, cutter.pre_tokenizer or pre_tokenizers.Sequence([])

    def ids(text: str) -> list[int]:
        normal = normalizer.normalize_str(text) if normalizer else text
        return [one for word, _ in splitter.pre_tokenize_str(normal) for one in word_ids(word)]

    return lambda texts: [ids(text) for text in texts]
