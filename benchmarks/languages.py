"""Claim: any language's vocabulary can be grown, on either family of base, and what cannot be is said with its reason.

Texts are Debian's translations of LibreOffice, of which `apt-get download` fetches the packages (about 60 MB), or those
that lie in --packages. For each language and base: `tokenizer train`, `tokenizer merge` and `tokenizer audit` as users
run them; characters a token on a held-out tenth, how many of the new rows it uses, and the audit's zeros over that
language and English.

    python benchmarks/languages.py --base LLaMA=tokenizer.model [--base NAME=PATH ...] [--language ko ...] [--size 1000]

A GGUF file is read as a tokenizer, too. The table is Markdown, as docs/languages.md shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
from pathlib import Path

from yangtuo.config.tokenizer_audit import TokenizerAuditConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.errors import UserError
from yangtuo.stages import tokenizer_audit, tokenizer_merge, tokenizer_train
from yangtuo.vocab.learn import divide_texts
from yangtuo.vocab.scripts import compile_scripts, scripts_of_language
from yangtuo.weights.gguf import open_gguf

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from libreoffice_texts import fetch, read_paragraphs

LANGUAGES = (
    *("am", "ar", "bn", "dz", "el", "fa", "gu", "he", "hi", "ja", "ka", "km", "kn", "ko", "ml", "mr", "or", "pa-in"),
    *("ru", "si", "ta", "te", "th", "tr", "ug", "uk", "vi", "zh-tw"),
)
CHARACTERS = 300_000  # of each language, an even share of its lines
HELP = {"dz", "el", "hi", "ja", "km", "ko", "ru", "tr", "vi", "zh-tw"}
ZEROS = ("changed_lines", "dead_pieces", "lost_pieces", "engine_mismatch_lines", "round_trip_failures",
         "leading_blank_pieces")  # fmt: skip
_SCRIPT_SHARE = {"vi": 0.05, "tr": 0.03}  # of letters that English lacks; half of the characters elsewhere


def write_texts(packages: Path, languages: list[str], directory: Path) -> dict[str, Path]:
    """One file a language, lines in its own scripts alone, and one of English."""
    names = {
        one: [f"libreoffice-l10n-{one}", *([f"libreoffice-help-{one}"] if one in HELP else [])] for one in languages
    }
    names["en"] = ["libreoffice-help-en-us"]
    files = {}
    for language, wanted in names.items():
        fetch(packages, wanted)
        lines = [line for name in wanted for line in read_paragraphs(packages / name)]
        if language != "en":
            scripts = compile_scripts(scripts_of_language(language.split("-")[0]))
            lines = [line for line in lines if scripts.share(line) > _SCRIPT_SHARE.get(language, 0.5)]
        files[language] = directory / f"{language}.txt"
        lines = lines[:: max(round(sum(map(len, lines)) / CHARACTERS), 1)]
        files[language].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def measure(base: Path, language: str, texts: dict[str, Path], size: int, widen: bool) -> dict[str, object]:
    """Figures of one language on one base."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        work = Path(name)
        (work / "own.txt").write_text("".join(divide_texts([texts[language].read_text("utf-8")])[2]), encoding="utf-8")
        tag = language.split("-")[0]
        learned = tokenizer_train.run(
            TokenizerTrainConfig(
                base=str(base), corpus=(str(texts[language]),), size=size, language=tag, output=work / "p", widen=widen
            )
        )
        merged = tokenizer_merge.run(
            TokenizerMergeConfig(base=str(base), pieces=str(work / "p"), output=work / "merged")
        )
        found = tokenizer_audit.run(
            TokenizerAuditConfig(
                tokenizer=str(merged.path),
                base=str(base),
                text=(f"en={texts['en']}", f"own={work / 'own.txt'}"),
            )
        )
        assert isinstance(found, dict) and not isinstance(learned, dict)
        return {**learned.manifest.details, "zeros": {key: found[key] for key in ZEROS}, "new": found["new_pieces"]}


def row(name: str, language: str, figures: dict[str, object], note: str) -> str:
    """A line of the table."""
    before, after = float(figures["base_chars_per_token"]), float(figures["chars_per_token"])  # type: ignore[arg-type]
    wrong = ", ".join(f"{key} {value}" for key, value in figures["zeros"].items() if value)  # type: ignore[attr-defined]
    ceiling = figures["ceiling"]
    return (
        f"| {language} | {' '.join(figures['script'])} | {name} | {before:.2f} | {after:.2f} | {after / before:.2f} | "  # type: ignore[arg-type]
        f"{'–' if ceiling is None else f'{ceiling:.2f}'} | {figures['rows_used'] / figures['new']:.0%} | "  # type: ignore[operator]
        f"{wrong or 'all 0'} | {note} |"
    )


def verdict(figures: dict[str, object], widen: bool) -> str:
    """What a reader should make of a line."""
    gain = float(figures["chars_per_token"]) / float(figures["base_chars_per_token"])  # type: ignore[arg-type]
    ceiling = figures["ceiling"]
    reached = ceiling is not None and float(figures["chars_per_token"]) > 0.8 * float(ceiling)  # type: ignore[arg-type]
    words = "pays" if gain >= 1.5 else "hardly pays" if gain >= 1.25 else "does not pay: the base has the script"
    if widen:
        words += "; words kept whole"
    return words + ("; the base's pre-tokenizer is the limit" if reached else "")


def main() -> None:
    """Prints the table, line by line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--language", action="append", choices=LANGUAGES)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--size", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        packages = arguments.packages or Path(name)
        texts = write_texts(packages, arguments.language or LANGUAGES, Path(name))
        print("| language | scripts | base | before | after | times | ceiling | rows used | audit | verdict |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for label, path in (one.split("=", 1) for one in arguments.base):
            base = Path(path)
            if base.suffix == ".gguf":
                base = Path(name) / label
                base.mkdir()
                open_gguf(Path(path)).tokenizer.write(base)
            for language in arguments.language or LANGUAGES:
                for widen in (False, True):
                    start = time.perf_counter()
                    size, note = arguments.size, ""
                    try:
                        figures = measure(base, language, texts, size, widen)
                    except UserError as error:  # fewer pieces than asked for can be met: take what there are
                        size = int(re.sub(r"\D", "", str(error.found).split(" ")[0]) or 0)
                        note = f"; only {size:,} pieces can be met"
                        figures = measure(base, language, texts, size, widen)
                    line = row(label, language, figures, verdict(figures, widen) + note)
                    print(line, f"<!-- {time.perf_counter() - start:.0f} s -->", flush=True)
                    if figures["ceiling"] is None or float(figures["ceiling"]) > 3:  # type: ignore[arg-type]
                        break


if __name__ == "__main__":
    main()
