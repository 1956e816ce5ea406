"""`yangtuo tokenizer audit`: finds the damage that the published recipe does, and none in a faithful merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yangtuo.config.tokenizer_audit import TokenizerAuditConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.errors import FileError, VocabularyError
from yangtuo.stages import tokenizer_audit, tokenizer_merge
from yangtuo.vocab.learn import sentencepiece_pieces

ENGLISH = "Once upon a time, in 1998, the cat\n  sat   on 10 mats\ndef add(a, b): return a + b\n"
CHINESE = "小镇的人说：小河流过小镇。\n在1998年，小镇 the cat 有10人。\n"
PIECES = ["小镇", "小", "镇", "小河流过", "10", "\u2581the\u2581cat", "的", "人"]
KEYS = (
    "num_lines",
    "chars_per_token",
    "base_chars_per_token",
    "changed_lines",
    "dead_pieces",
    "lost_pieces",
    "engine_mismatch_lines",
    "round_trip_failures",
)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[str, str]:
    """An English and a Chinese file, named."""
    (tmp_path / "en.txt").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "zh.txt").write_text(CHINESE, encoding="utf-8")
    return f"en={tmp_path / 'en.txt'}", f"zh={tmp_path / 'zh.txt'}"


def merged(base: Path, directory: Path, style: str) -> str:
    """A tokenizer of the pieces above, joined in one style."""
    directory.mkdir(exist_ok=True)
    pieces = directory / "pieces.model"
    pieces.write_bytes(sentencepiece_pieces(PIECES))
    output = directory / style
    tokenizer_merge.run(
        TokenizerMergeConfig(base=str(base), pieces=str(pieces), style=style, output=output)  # type: ignore[arg-type]
    )
    return str(output)


def test_a_faithful_merge_has_zeros(pico_tokenizer: Path, tmp_path: Path, texts: tuple[str, str]) -> None:
    tokenizer = merged(pico_tokenizer, tmp_path / "work", "faithful")
    config = TokenizerAuditConfig(tokenizer=tokenizer, base=str(pico_tokenizer), text=texts, output=tmp_path / "audit")
    artifact = tokenizer_audit.run(config)
    assert not isinstance(artifact, dict)
    values = artifact.result()
    assert values["num_lines"] == ENGLISH.count("\n") + CHINESE.count("\n") + 2
    assert [values[key] for key in KEYS[3:]] == [0, 0, 0, 0, 0]
    assert values["chars_per_token"] > values["base_chars_per_token"]
    written = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))
    assert all(written[key] == values[key] for key in KEYS)
    assert written["by_script"]["Latin"]["chars_per_token"] == written["by_script"]["Latin"]["base_chars_per_token"]
    page = (tmp_path / "audit/index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "小镇" in page and "<script" not in page


def test_the_published_recipes_damage_is_found(pico_tokenizer: Path, tmp_path: Path, texts: tuple[str, str]) -> None:
    """10 becomes one token in English and in Chinese lines; 小河流过 can never be reached."""
    tokenizer = merged(pico_tokenizer, tmp_path / "work", "published")
    config = TokenizerAuditConfig(tokenizer=tokenizer, base=str(pico_tokenizer), text=texts, output=tmp_path / "audit")
    tokenizer_audit.run(config)
    values = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))
    page = (tmp_path / "audit/index.html").read_text(encoding="utf-8")
    assert '<span class="marked">10</span>' in page and '<span class="marked">0</span>' in page
    assert "\ufffd" not in page and "<span>\u2581the cat</span>" in page
    assert values["examples"]["leading_blank_pieces"] == ["\u2581the cat"]
    assert "小河流过" in values["examples"]["dead_pieces"]
    assert set(values["examples"]["changed_lines"]) == {"  sat   on 10 mats", "在1998年，小镇 the cat 有10人。"}
    assert values["changed_lines"] == 2


def test_engines_that_disagree_are_noticed(pico_tokenizer: Path, tmp_path: Path, texts: tuple[str, str]) -> None:
    """A tokenizer.json that some other tool wrote for the same model: here its lowest merges are turned around."""
    tokenizer = Path(merged(pico_tokenizer, tmp_path / "work", "faithful"))
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    (tokenizer / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    values = tokenizer_audit.run(TokenizerAuditConfig(tokenizer=str(tokenizer), base=str(pico_tokenizer), text=texts))
    assert isinstance(values, dict) and values["engine_mismatch_lines"] > 0


def test_a_tokenizer_against_itself_does_not_pay(pico_byte_level: Path, texts: tuple[str, str]) -> None:
    path = str(pico_byte_level)
    values = tokenizer_audit.run(TokenizerAuditConfig(tokenizer=path, base=path, text=texts))
    assert isinstance(values, dict)
    assert values["new_pieces"] == values["changed_lines"] == values["engine_mismatch_lines"] == 0
    assert "unlikely to pay" in values["advice"]


def test_a_base_that_is_none_is_refused(pico_tokenizer: Path, pico_byte_level: Path, texts: tuple[str, str]) -> None:
    config = TokenizerAuditConfig(tokenizer=str(pico_tokenizer), base=str(pico_byte_level), text=texts)
    with pytest.raises(VocabularyError, match="does not extend"):
        tokenizer_audit.run(config)


def test_tokenizers_that_do_not_merge_are_refused(shared_data: Path, tmp_path: Path, texts: tuple[str, str]) -> None:
    """Another engine's reading of a unigram model as BPE would show disagreement on every line."""
    path = str(shared_data / "tokenizers/chinese_sp.model")
    with pytest.raises(VocabularyError, match="does not cut by merges"):
        tokenizer_audit.run(TokenizerAuditConfig(tokenizer=path, base=path, text=texts))
    assert {entry.name for entry in tmp_path.iterdir()} == {"en.txt", "zh.txt"}


def test_planned_training_enters_the_advice(pico_tokenizer: Path, tmp_path: Path, texts: tuple[str, str]) -> None:
    tokenizer = merged(pico_tokenizer, tmp_path / "work", "faithful")
    for tokens, pays in ((100, False), (1_000_000, True)):
        config = TokenizerAuditConfig(tokenizer=tokenizer, base=str(pico_tokenizer), text=texts, training_tokens=tokens)
        values = tokenizer_audit.run(config)
        assert isinstance(values, dict) and ("unlikely to pay with this training" in values["advice"]) is not pays


def test_a_tokenizer_json_that_the_library_refuses_is_told(pico_tokenizer: Path, tmp_path: Path) -> None:
    """The library raises bare exceptions; SentencePiece reads the directory all the same, so that it comes this far."""
    shutil.copytree(pico_tokenizer, tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["decoder"] = {"type": "Strip", "content": None, "start": 0, "stop": 0}
    file.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "a.txt").write_text("The cat.", encoding="utf-8")
    config = TokenizerAuditConfig(
        tokenizer=str(tmp_path / "tokenizer"), base=str(pico_tokenizer), text=(str(tmp_path / "a.txt"),)
    )
    with pytest.raises(FileError, match="library can read"):
        tokenizer_audit.run(config)
