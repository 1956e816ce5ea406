"""Near-duplicates and exam questions planted in real Chinese text: how many are found, and how much is lost.

    python benchmarks/dedup.py [--small]

Passages of 400 characters from ../shared/data; in copies of 200 of them 5 % of the words (two characters each) are
replaced. Questions of C-Eval and CMMLU are planted between lines. Prints shares found and lost, and speed.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from yangtuo.data.decontaminate import SHORTEST, letter_bytes, read_exam
from yangtuo.data.filters import Filters, filter_documents
from yangtuo.data.readers import read_documents, read_passages

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
LENGTH = 400


def changed(text: str, generator: random.Random, pool: str) -> str:
    """The text with 5 % of its words replaced."""
    words = [text[begin : begin + 2] for begin in range(0, len(text), 2)]
    for index in generator.sample(range(len(words)), round(0.05 * len(words))):
        words[index] = "".join(generator.choices(pool, k=2))
    return "".join(words)


def main() -> None:
    """Prints the figures."""
    generator = random.Random(0)
    num_files = 4 if "--small" in sys.argv else 15
    texts = [d.text for file in sorted((SHARED / "corpora/zh").glob("*.txt"))[:num_files] for d in read_documents(file)]
    passages = [text[begin : begin + LENGTH] for text in texts for begin in range(0, len(text) - LENGTH, LENGTH)]
    distinct, _ = filter_documents(passages, Filters(False, "exact", None))
    planted = [changed(text, generator, texts[0]) for text in generator.sample(distinct, 200)]
    began = time.perf_counter()
    kept, removed = filter_documents(distinct + planted, Filters(False, "near", None))
    seconds = time.perf_counter() - began
    survivors = set(kept)
    found = sum(text not in survivors for text in planted)
    lost = sum(text not in survivors for text in distinct)
    print(f"near-duplicates planted {len(planted)}, found {found} ({found / len(planted):.1%})")
    print(f"distinct passages {len(distinct)}, lost {lost} ({lost / len(distinct):.2%}); {dict(removed.counts)}")
    print(f"{(len(distinct) + len(planted)) * LENGTH / seconds / 1e6:.2f} million characters a second")
    questions = [text for path in ("eval/ceval", "eval/cmmlu") for text in read_passages(SHARED / path)]
    exam = read_exam(questions)
    usable = [text for text in dict.fromkeys(questions) if len(letter_bytes(text)) >= SHORTEST]
    missed = sum(not exam.clean(f"{texts[0][:200]}\n12. {text}\n{texts[0][200:300]}")[1] for text in usable)
    clean_lost = sum(bool(exam.clean(text)[1]) for text in distinct)
    print(f"exam passages planted {len(usable)}, missed {missed}; too short to look for {exam.num_too_short}")
    print(f"passages of the untouched corpus that hold one: {clean_lost} of {len(distinct)}")


if __name__ == "__main__":
    main()
