"""`yangtuo tokenizer audit`: measures a tokenizer against its base.

Reads like its summary: two tokenizers, the texts, the findings, and where wanted a page and a JSON file of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.options import split_source
from yangtuo.config.tokenizer_audit import TokenizerAuditConfig
from yangtuo.data.readers import read_documents
from yangtuo.data.records import RECORD_SUFFIXES, TEXT_SUFFIXES, list_files
from yangtuo.vocab.advice import advise
from yangtuo.vocab.audit import Audit, audit
from yangtuo.vocab.audit_page import render_page
from yangtuo.vocab.scripts import ASCII

JSON_FILE = "audit.json"
PAGE_FILE = "index.html"


def run(config: TokenizerAuditConfig) -> Artifact | dict[str, Any]:
    """Writes the findings into `config.output`, or returns them where there is none."""
    if config.output is not None:
        refuse_existing(config.output)
    tokenizer = open_artifact(config.tokenizer, Kind.TOKENIZER, Kind.MODEL)
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    told = tokenizer.manifest.details.get("script", ()) if tokenizer.manifest else ()
    findings = audit(tokenizer.path, base.path, _texts(config), config.script or told)
    advice = _advice(findings, config)
    values = {**findings.to_dict(), "advice": advice}
    _report(findings)
    if config.output is None:
        return values
    with draft(config, Kind.EVALUATION, {"tokenizer": tokenizer, "base": base}) as made:
        text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
        (made.path / JSON_FILE).write_text(text, encoding="utf-8")
        page = render_page(findings, config.tokenizer, config.base, advice)
        (made.path / PAGE_FILE).write_text(page, encoding="utf-8")
        kept = {name: value for name, value in values.items() if name not in ("examples", "by_file")}
        made.describe(details={**kept, "page": str(config.output / PAGE_FILE)})
    return made.artifact


def _texts(config: TokenizerAuditConfig) -> dict[str, Iterator[str]]:
    """The texts of every file, by the file's name below its source."""
    texts: dict[str, Iterator[str]] = {}
    for reference in config.text:
        source = split_source(reference)
        root = open_artifact(source.path).path
        for file in list_files(root, (*TEXT_SUFFIXES, *RECORD_SUFFIXES)):
            name = f"{source.name}/{file.relative_to(root)}" if root.is_dir() else source.name
            texts[name] = _documents(file, name)
    return texts


def _documents(file: Path, name: str) -> Iterator[str]:
    with console.progress(name, None) as bar:
        for document in read_documents(file):
            yield document.text
            bar.advance()


def _advice(findings: Audit, config: TokenizerAuditConfig) -> str:
    own = [findings.by_script[name].to_dict() for name in findings.scripts if name in findings.by_script]
    best = max(own, key=lambda row: row["characters"], default={"base_chars_per_token": 0.0, "chars_per_token": 0.0})
    rates = best["base_chars_per_token"], best["chars_per_token"]
    return advise(*rates, findings.new_pieces, config.training_tokens).text


def _report(findings: Audit) -> None:
    rows = [
        (name, f"{row['characters']:,}", f"{row['base_chars_per_token']:.3f}", f"{row['chars_per_token']:.3f}")
        for name, row in ((name, amount.to_dict()) for name, amount in findings.by_script.items())
        if row["characters"]
    ]
    console.detail(
        console.table("Characters per token (more: shorter text)", ["lines in", "characters", "base", "new"], rows)
    )
    if not findings.num_compared:
        console.warn("no text holds English, digits or code: whether they are cut as before was not measured")
    elif ASCII in findings.scripts:
        changed = ", ".join(f"{name} {amount.num_changed:,}" for name, amount in findings.by_file.items())
        console.warn(f"pieces may be made of English letters; lines that are cut otherwise, by file: {changed}")
    if findings.leading_spaces:
        console.detail(f"{findings.leading_spaces:,} new pieces start with a space, as words of their script do")
    if findings.leading_blank:
        console.warn(f"{len(findings.leading_blank):,} new pieces start with a space that their script does not write")
