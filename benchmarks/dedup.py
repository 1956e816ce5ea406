"""Near-duplicates and exam questions planted in real Chinese text: how many are found, and how much is lost.

    python benchmarks/dedup.py [--small]

Passages of 400 characters from ../shared/data; in copies of 200 of them 5 % of the words (two characters each) are
replaced. Questions of C-Eval and CMMLU are planted between lines. Prints shares found and lost, and speed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yangtuo.data.decontaminate import read_exam, read_passages
from yangtuo.data.dedup import NUM_BANDS, find_near, signatures, sketches
from yangtuo.data.readers import read_documents

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
LENGTH = 400


def changed(text: str, generator: random.Random, pool: str) -> str:
    """The text with 5 % of its words replaced."""
    words = [text[begin : begin + 2] for begin in range(0, len(text), 2)]
    for index in generator.sample(range(len(words)), round(0.05 * len(words))):
        words[index] = "".join(generator.choices(pool, k=2))
    return "".join(words)


def find(texts: Sequence[str]) -> set[int]:
    """The indices of near-duplicates, as `prepare` finds them."""
    kept = np.concatenate([sketches(signatures(texts[at : at + 1000])) for at in range(0, len(texts), 1000)])
    bands = (np.ascontiguousarray(kept["keys"][:, band]) for band in range(NUM_BANDS))
    return set(np.flatnonzero(find_near(bands, kept["marks"], np.ones(len(kept), dtype=bool))).tolist())


def main() -> None:
    """Prints the figures."""
    generator = random.Random(0)
    num_files = 4 if "--small" in sys.argv else 15
    texts = [d.text for file in sorted((SHARED / "corpora/zh").glob("*.txt"))[:num_files] for d in read_documents(file)]
    passages = [text[begin : begin + LENGTH] for text in texts for begin in range(0, len(text) - LENGTH, LENGTH)]
    distinct = list(dict.fromkeys(text.strip() for text in passages))
    planted = [changed(text, generator, texts[0]) for text in generator.sample(distinct, 200)]
    began = time.perf_counter()
    found = find(distinct + planted)
    seconds = time.perf_counter() - began
    num_found = sum(index >= len(distinct) for index in found)
    lost = len(found) - num_found
    print(f"near-duplicates planted {len(planted)}, found {num_found} ({num_found / len(planted):.1%})")
    print(f"distinct passages {len(distinct)}, lost {lost} ({lost / len(distinct):.2%})")
    print(f"{(len(distinct) + len(planted)) * LENGTH / seconds / 1e6:.2f} million characters a second")
    known = [one for path in ("eval/ceval", "eval/cmmlu") for one in read_passages(SHARED / path)]
    exam = read_exam(known)
    questions = list(dict.fromkeys(text for text, is_question in known if is_question))
    # In the middle of a line of other text only those of 16 bytes and more are looked for.
    missed = sum(not exam.clean(f"{texts[0][:200]}\n12. {text}\n{texts[0][200:300]}")[1] for text in questions)
    joined = sum(not exam.clean(f"{texts[0][:200]}。{text}\n{texts[0][200:300]}")[1] for text in questions)
    short, options = len(exam.sentences), exam.num_too_short
    print(f"questions planted {len(questions)}, {short} of 6 to 15 bytes: missed {missed} as a line, {joined} as a "
          f"sentence; {options} options and answers are too short to look for")  # fmt: skip
    began = time.perf_counter()
    lines = [line for text in distinct for line in exam.clean(text)[1]]
    seconds = time.perf_counter() - began
    brief = [line for line in lines if len(line) < 12]
    print(f"untouched corpus: {len(lines)} lines removed from {len(distinct)} passages, short ones {brief[:8]}; "
          f"{len(distinct) * LENGTH / seconds / 1e6:.2f} million characters a second")  # fmt: skip


if __name__ == "__main__":
    main()
