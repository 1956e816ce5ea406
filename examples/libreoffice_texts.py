"""Real text of some forty languages, from Debian's translations of LibreOffice: files for `prepare` and rows for `sft`.

    python examples/libreoffice_texts.py --language ko --output texts

Downloads the packages `libreoffice-help-LANGUAGE`, where there is one, `libreoffice-l10n-LANGUAGE` and
`libreoffice-help-en-us` (some ten megabytes each; `apt-get` and `dpkg` are needed, no root), and writes

    LANGUAGE.txt, en.txt              what the help pages and the messages say, a paragraph a line
    LANGUAGE-held-out.txt, en-…       a twentieth of the paragraphs, which are in no other file
    pairs.jsonl, pairs-held-out.jsonl English messages and their translations, as instruction, input and output

The texts are LibreOffice's, under the Mozilla Public License 2.0.
"""

from __future__ import annotations

import argparse
import gettext
import html
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

_HIDDEN = re.compile(r"(?is)<(script|style|head).*?</\1>")
_BLOCK = re.compile(r"(?is)<(?:p|h\d|td|li)[^>]*>(.*?)</(?:p|h\d|td|li)>")
_HELD_OUT = 20  # every so-manieth paragraph or pair
_PLAIN = re.compile(r"[%$<>{}\\\n_~#]")  # of messages with parts that a program fills in


def fetch(packages: Path, names: list[str]) -> None:
    """Downloads the packages that are missing below `packages` and unpacks each into a directory of its name."""
    packages.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not list(packages.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=packages, check=True, stdout=subprocess.DEVNULL)
        if not (packages / name).is_dir():
            (deb,) = packages.glob(f"{name}_*.deb")
            subprocess.run(["dpkg", "-x", str(deb), str(packages / name)], check=True)


def read_paragraphs(package: Path) -> list[str]:
    """The paragraphs of help pages and the messages of catalogues of an unpacked package, once each."""
    texts: list[str] = []
    for page in sorted(package.rglob("*.html")):
        blocks = _BLOCK.finditer(_HIDDEN.sub("", page.read_text(encoding="utf-8")))
        texts += [" ".join(html.unescape(re.sub(r"<[^>]+>", "", block[1])).split()) for block in blocks]
    texts += [text.replace("~", "").replace("_", "") for _, text in read_messages(package)]
    return [text for text in dict.fromkeys(texts) if len(text) > 15]


def read_messages(package: Path) -> Iterator[tuple[str, str]]:
    """(English, translated) of each message of an unpacked package's catalogues."""
    for catalogue in sorted(package.rglob("*.mo")):
        with catalogue.open("rb") as file:
            messages = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, text in messages.items():
            if key and text and isinstance(key, str):
                yield key.rsplit("\x04", 1)[-1], text


def pairs(package: Path, name: str) -> Iterator[dict[str, str]]:
    """Rows that ask for a translation from English, or into it."""
    seen = set()
    for english, translated in read_messages(package):
        if english in seen or _PLAIN.search(english + translated) or not 12 < len(english) < 160:
            continue
        seen.add(english)
        if len(seen) % 4:
            yield {"instruction": f"Translate into {name}.", "input": english, "output": translated}
        else:
            yield {"instruction": "Translate into English.", "input": translated, "output": english}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", required=True, help="as Debian's packages call it: ko, bo, th, zh-cn …")
    parser.add_argument("--name", default="Korean", help="the language's English name, for the rows")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--packages", type=Path, default=Path("packages"))
    options = parser.parse_args()
    language, output = options.language, options.output
    found = subprocess.run(["apt-cache", "show", f"libreoffice-help-{language}"], capture_output=True, check=False)
    helps = [f"libreoffice-help-{language}"] if found.stdout else []
    fetch(options.packages, [*helps, f"libreoffice-l10n-{language}", "libreoffice-help-en-us"])
    output.mkdir(parents=True, exist_ok=True)
    english = read_paragraphs(options.packages / "libreoffice-help-en-us")
    # What was not translated stands in the pages in English.
    untranslated = set(english)
    names = [*helps, f"libreoffice-l10n-{language}"]
    own = dict.fromkeys(line for name in names for line in read_paragraphs(options.packages / name))
    for tag, lines in ((language, [line for line in own if line not in untranslated]), ("en", english)):
        kept = [line for number, line in enumerate(lines) if number % _HELD_OUT]
        (output / f"{tag}.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
        (output / f"{tag}-held-out.txt").write_text("\n".join(lines[::_HELD_OUT]) + "\n", encoding="utf-8")
    rows = list(pairs(options.packages / f"libreoffice-l10n-{language}", options.name))
    for name, chosen in (
        ("pairs", [row for number, row in enumerate(rows) if number % _HELD_OUT]),
        ("pairs-held-out", rows[::_HELD_OUT]),
    ):
        written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (output / f"{name}.jsonl").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
