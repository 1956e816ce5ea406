"""What a tokenizer does to texts, measured against its base: compression, damage, disagreement.

Counts lines, not opinions: every list holds what can be looked up. Knows no page and no artifact.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex  # type: ignore[import-untyped]
from transformers import AutoTokenizer

from yangtuo.errors import VocabularyError
from yangtuo.vocab.directory import CONFIG_FILE, FAST_FILE, MODEL_FILE, read_directory
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.vocab.engines import FastEngine, library_refusals
from yangtuo.vocab.scripts import BLANK, DEFAULT_SCRIPTS, Scripts, compile_scripts, letter_counts, writes_spaces
from yangtuo.vocab.sentencepiece_model import is_bpe

_BATCH = 4096  # lines encoded at once
_NUM_WORST = 20
_NUM_LISTED = 1000
_LONGEST_SHOWN = 400  # characters or pieces of a line
_WRITTEN_IN = 0.05  # share of the letters of new pieces from which on a script is taken for one of theirs
PLAIN = regex.compile(r"[\p{Script=Latin}\p{Nd}!-~]")  # letters, digits and signs of English and of code


@dataclass
class Amount:
    """Characters and the tokens that both tokenizers make of them."""

    num_characters: int = 0
    num_tokens: int = 0
    num_base_tokens: int = 0
    num_changed: int = 0

    def add(self, text: str, ids: Sequence[int], base_ids: Sequence[int], changed: bool) -> None:
        """Counts one line."""
        self.num_changed += changed
        self.num_characters += len(text)
        self.num_tokens += len(ids)
        self.num_base_tokens += len(base_ids)

    def to_dict(self) -> dict[str, Any]:
        """Figures for people and programs."""
        return {
            "characters": self.num_characters,
            "chars_per_token": _ratio(self.num_characters, self.num_tokens),
            "base_chars_per_token": _ratio(self.num_characters, self.num_base_tokens),
            "changed_lines": self.num_changed,
        }


@dataclass(frozen=True)
class Sample:
    """A line worth looking at, cut in two ways: by the base or another engine, and by the tokenizer."""

    text: str
    base: list[str]
    tokens: list[str]


@dataclass
class Audit:
    """All findings; `to_dict` gives the published keys."""

    num_lines: int = 0
    total: Amount = field(default_factory=Amount)
    by_script: dict[str, Amount] = field(default_factory=dict)
    by_file: dict[str, Amount] = field(default_factory=dict)
    changed: list[Sample] = field(default_factory=list)
    mismatched: list[Sample] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    scripts: tuple[str, ...] = ()
    """The scripts of the new pieces."""
    num_compared: int = 0
    """Lines with English, digits or code: those that could have changed."""
    num_mismatched: int = 0
    num_broken: int = 0
    dead: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leading_blank: list[str] = field(default_factory=list)
    """New pieces that start with a space and are not of a script that parts words by spaces."""
    leading_spaces: int = 0
    """New pieces that start with a space as words of their script do."""
    unused: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    """Characters in a new piece -> number of such pieces."""
    frequencies: dict[int, int] = field(default_factory=dict)
    """Times a new piece was used, as a power of two -> number of such pieces."""
    new_pieces: int = 0
    worst: list[Sample] = field(default_factory=list)
    """Lines in the wanted scripts that got least shorter."""

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values; lists are cut at 1,000 entries, counts are whole."""
        return {
            "num_lines": self.num_lines,
            "chars_per_token": _ratio(self.total.num_characters, self.total.num_tokens),
            "base_chars_per_token": _ratio(self.total.num_characters, self.total.num_base_tokens),
            "script": list(self.scripts),
            "compared_lines": self.num_compared,
            "changed_lines": self.total.num_changed if self.num_compared else None,
            "dead_pieces": len(self.dead),
            "lost_pieces": len(self.lost),
            "engine_mismatch_lines": self.num_mismatched,
            "round_trip_failures": self.num_broken,
            "new_pieces": self.new_pieces,
            "unused_pieces": self.unused,
            "leading_blank_pieces": len(self.leading_blank),
            "leading_space_pieces": self.leading_spaces,
            "by_script": {name: amount.to_dict() for name, amount in self.by_script.items()},
            "by_file": {name: amount.to_dict() for name, amount in self.by_file.items()},
            "piece_lengths": {str(key): self.lengths[key] for key in sorted(self.lengths)},
            "piece_frequencies": {str(key): self.frequencies[key] for key in sorted(self.frequencies)},
            "examples": {
                "changed_lines": [sample.text for sample in self.changed],
                "engine_mismatch_lines": [sample.text for sample in self.mismatched],
                "round_trip_failures": self.broken,
                "dead_pieces": self.dead[:_NUM_LISTED],
                "lost_pieces": self.lost[:_NUM_LISTED],
                "leading_blank_pieces": self.leading_blank[:_NUM_LISTED],
            },
        }


def audit(tokenizer: Path, base: Path, texts: Mapping[str, Iterable[str]], script: Sequence[str] = ()) -> Audit:
    """Measures `tokenizer` against `base` over the lines of `texts` (label -> texts).

    A changed line is one in which a piece with Latin letters, digits or ASCII signs, and none of `script` (default:
    that of the new pieces), is no longer cut as the base cuts it; where pieces may be made of English letters, any
    line that is cut otherwise. Lines are compared without their line ends. Raises `VocabularyError` where `tokenizer`
    does not extend `base`.
    """
    new, old = load_encoder(tokenizer), load_encoder(base)
    if new.pieces[: old.vocabulary_size] != old.pieces:
        raise VocabularyError(
            f"{tokenizer} does not extend {base}",
            found=f"{new.vocabulary_size:,} pieces whose first {old.vocabulary_size:,} are not the base's",
            expected="the tokenizer that it was made from as --base",
        )
    scripts = compile_scripts(script or _written_in(new, old))
    result, in_transformers = Audit(scripts=scripts.names), _as_transformers(tokenizer)
    used: Counter[int] = Counter()
    spans = _Spans(new, scripts), _Spans(old, scripts)
    for label, some in texts.items():
        amount = result.by_file.setdefault(label, Amount())
        for lines in _batches(some):
            ids, base_ids, other_ids = (
                new.encode_batch(lines),
                old.encode_batch(lines),
                in_transformers.encode_batch(lines, None),
            )
            for text, new_ids, before, engine in zip(lines, ids, base_ids, other_ids, strict=True):
                used.update(new_ids)
                plain = PLAIN.search(text) is not None
                changed = plain and new_ids != before and spans[1].differ(before, spans[0], new_ids)
                result.num_compared += plain
                for counted in (amount, result.total, result.by_script.setdefault(_dominant_script(text), Amount())):
                    counted.add(text, new_ids, before, changed)
                if engine != new_ids:
                    result.num_mismatched += 1
                    _keep(result.mismatched, text, new_ids, engine, (new, new))
                if new.decode(new_ids) != text:
                    result.num_broken += 1
                    result.broken += [text[:_LONGEST_SHOWN]] if len(result.broken) < _NUM_WORST else []
                if changed:
                    _keep(result.changed, text, new_ids, before, (new, old))
                if len(before) > 8 and len(text) <= 200 and scripts.share(text) > 0.5:
                    _keep_worst(result, text, new_ids, before, (new, old))
            result.num_lines += len(lines)
    _judge_pieces(result, (new, old), used, scripts)
    return result


def _written_in(new: Encoder, old: Encoder) -> tuple[str, ...]:
    """The scripts of the pieces that `new` has beyond `old`; Latin only where there is no other."""
    controls = set(new.controls.values())
    fresh = range(old.vocabulary_size, new.vocabulary_size)
    counts = letter_counts("".join(readable(new, index) for index in fresh if index not in controls))
    latin = counts.pop("Latin", 0)
    names = tuple(name for name, count in counts.items() if count > _WRITTEN_IN * counts.total())
    return names or (("Latin",) if latin else DEFAULT_SCRIPTS)


def _judge_pieces(result: Audit, encoders: tuple[Encoder, Encoder], used: Counter[int], scripts: Scripts) -> None:
    new, old = encoders
    controls = set(new.controls.values())
    fresh = [index for index in range(old.vocabulary_size, new.vocabulary_size) if index not in controls]
    result.new_pieces = len(fresh)
    for index in fresh:
        text = readable(new, index)
        if new.split_piece(new.pieces[index]) != [index]:
            result.dead.append(text)
        if text.startswith(" "):
            script = next(iter(letter_counts(text)), "")
            if script in scripts.names and writes_spaces(script):
                result.leading_spaces += 1
            else:
                result.leading_blank.append(BLANK + text[1:])
        length = len(new.token_bytes(index).decode("utf-8", errors="replace"))
        result.lengths[length] = result.lengths.get(length, 0) + 1
        power = used[index].bit_length() - 1
        if power < 0:
            result.unused += 1
        else:
            result.frequencies[power] = result.frequencies.get(power, 0) + 1
    for index in range(old.vocabulary_size):
        piece = old.pieces[index]
        if old.split_piece(piece) == [index] and new.split_piece(piece) != [index]:
            result.lost.append(readable(old, index))


class _Spans:
    """Where the pieces of a line lie, in bytes of the text as the tokenizer sees it."""

    def __init__(self, encoder: Encoder, scripts: Scripts) -> None:
        data = [encoder.token_bytes(index) for index in range(encoder.vocabulary_size)]
        self._lengths = [len(token) for token in data]
        texts = [token.decode("utf-8", errors="replace") for token in data]
        own = [scripts.own.search(text) is not None for text in texts]
        self._any = scripts.share_base
        self._own = own if "Latin" in scripts.names else [False] * len(own)
        self._plain = [PLAIN.search(text) is not None and not mine for text, mine in zip(texts, own, strict=True)]

    def all(self, ids: Sequence[int]) -> set[tuple[int, int]]:
        """Offset and id of every piece."""
        offset, spans = 0, set()
        for index in ids:
            spans.add((offset, index))
            offset += self._lengths[index]
        return spans

    def differ(self, ids: Sequence[int], other: _Spans, other_ids: Sequence[int]) -> bool:
        """Whether `other_ids` lack a piece of English, digits and code that `ids` have, both of one text.

        A piece that has become part of a word of the new language, which uses the same letters, is none.
        """
        if self._any:
            return list(ids) != list(other_ids)
        all_of_other = other.all(other_ids)
        missing = {(offset, index) for offset, index in self.all(ids) if self._plain[index]} - all_of_other
        words = [(begin, begin + other._lengths[index]) for begin, index in all_of_other if other._own[index]]
        return any(not any(begin <= offset < end for begin, end in words) for offset, _ in missing)


def readable(encoder: Encoder, index: int) -> str:
    """A piece as text; bytes that are no whole character are written like \\xe4."""
    return encoder.token_bytes(index).decode("utf-8", errors="backslashreplace")


def _dominant_script(text: str) -> str:
    return next(iter(letter_counts(text)), "no letters")


def _keep(
    kept: list[Sample], text: str, ids: Sequence[int], other_ids: Sequence[int], encoders: tuple[Encoder, Encoder]
) -> None:
    if len(kept) < _NUM_WORST:
        kept.append(_sample(text, ids, other_ids, encoders))


def _sample(text: str, ids: Sequence[int], other_ids: Sequence[int], encoders: tuple[Encoder, Encoder]) -> Sample:
    """The line cut in both ways, its end left off where it is long."""
    new, old = encoders
    before = [readable(old, index) for index in other_ids[:_LONGEST_SHOWN]]
    return Sample(text[:_LONGEST_SHOWN], before, [readable(new, index) for index in ids[:_LONGEST_SHOWN]])


def _keep_worst(
    result: Audit, text: str, ids: Sequence[int], base_ids: Sequence[int], encoders: tuple[Encoder, Encoder]
) -> None:
    """Keeps the lines whose number of tokens fell least."""
    gain = len(ids) / len(base_ids)
    least = result.worst[-1] if len(result.worst) == _NUM_WORST else None
    if least is None or gain > len(least.tokens) / len(least.base):
        result.worst.append(_sample(text, ids, base_ids, encoders))
        result.worst.sort(key=lambda sample: -len(sample.tokens) / len(sample.base))
        del result.worst[_NUM_WORST:]


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        for line in text.split("\n"):
            batch.append(line)
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _ratio(numerator: int, denominator: int) -> float:
    return round(numerator / denominator, 4) if denominator else 0.0


def _as_transformers(path: Path) -> FastEngine:
    """What transformers' AutoTokenizer makes of the tokenizer at `path`, as an engine beside ours.

    Raises `VocabularyError` for models that do not cut by merges.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = path
        if path.is_file():
            directory = Path(name)
            is_json = path.suffix == ".json"
            shutil.copyfile(path, directory / (FAST_FILE if is_json else MODEL_FILE))
            kind = "PreTrainedTokenizerFast" if is_json else "LlamaTokenizer"
            (directory / CONFIG_FILE).write_text(json.dumps({"tokenizer_class": kind}), encoding="utf-8")
        with library_refusals(str(path)):
            loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        content = json.loads(loaded.backend_tokenizer.to_str())
    proto = read_directory(path).proto
    if content["model"]["type"] != "BPE" or (proto is not None and not is_bpe(proto)):
        raise VocabularyError(
            f"{path} cannot be audited",
            found="a tokenizer that does not cut by merges (unigram, WordPiece)",
            expected="a SentencePiece BPE model or a byte-level BPE tokenizer",
        )
    return FastEngine(content)
