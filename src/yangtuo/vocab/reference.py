"""A second opinion on ids: what another engine makes of the same tokenizer.

For SentencePiece directories it is what transformers' AutoTokenizer loads; for byte-level ones, merges applied one by
one as the format's definition says (Sennrich et al. 2016). Knows no corpus.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from yangtuo.errors import VocabularyError
from yangtuo.vocab.directory import CONFIG_FILE, FAST_FILE, MODEL_FILE
from yangtuo.vocab.encoding import Family, is_sentencepiece, load_encoder, read_fast_json
from yangtuo.vocab.engines import FastEngine
from yangtuo.vocab.sentencepiece_model import is_bpe, read_model

Encode = Callable[[Sequence[str]], list[list[int]]]


def other_engine(path: Path) -> Encode:
    """Ids of texts by an engine that `load_encoder` does not use for the tokenizer at `path`.

    Raises `VocabularyError` for models that do not merge: no other engine of theirs is at hand.
    """
    model = path / MODEL_FILE if path.is_dir() else path
    family = load_encoder(path).family
    if family is Family.OTHER or (is_sentencepiece(model) and not is_bpe(read_model(model))):
        raise VocabularyError(
            f"{path} cannot be audited",
            found="a tokenizer that does not cut by merges (unigram, WordPiece)",
            expected="a SentencePiece BPE model or a byte-level BPE tokenizer",
        )
    if family is Family.BYTE_LEVEL:
        return _merge_by_merge(read_fast_json(path / FAST_FILE if path.is_dir() else path))
    engine = FastEngine(json.loads(_as_transformers_loads(path)))
    return lambda texts: engine.encode_batch(texts, None)


def _as_transformers_loads(path: Path) -> str:
    """The tokenizer.json text that transformers makes of a directory, or of a bare file in a directory of its own."""
    if path.is_dir():
        return str(AutoTokenizer.from_pretrained(path).backend_tokenizer.to_str())
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        shutil.copyfile(path, home / (FAST_FILE if path.suffix == ".json" else MODEL_FILE))
        (home / CONFIG_FILE).write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}), encoding="utf-8")
        return str(AutoTokenizer.from_pretrained(home).backend_tokenizer.to_str())


def _merge_by_merge(content: Mapping[str, Any]) -> Encode:
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
