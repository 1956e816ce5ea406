"""Shares of the work that other machines have done, found beside the output and checked before they are joined.

Knows parts and their fingerprints, not what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yangtuo.config.options import shard_path
from yangtuo.data.parts import Part, Treatment, part_fingerprint, read_account
from yangtuo.errors import LineageError

_LISTED = 8


def find(output: Path, parts: Sequence[Part], treatment: Treatment) -> list[Path] | None:
    """The directories of all parts in the shards beside `output`, or None where there are no shards.

    Raises `LineageError` where a shard is missing, or made of other text, with another tokenizer or other settings.
    """
    counts = {
        int(match[1])
        for path in output.parent.glob(f"{output.name}.shard-*-of-*")
        if (match := re.fullmatch(r".*\.shard-\d+-of-(\d+)", path.name))
    }
    if not counts:
        return None
    if len(counts) > 1:
        raise LineageError(
            f"beside {output} stand shards of several divisions of the work",
            found=", ".join(f"{count} shards" for count in sorted(counts)),
            expected="those of one; remove the others",
        )
    count = counts.pop()
    missing = [number for number in range(1, count + 1) if not shard_path(output, number, count).is_dir()]
    if missing:
        raise LineageError(
            f"shards of {output} are missing",
            found=f"{count - len(missing)} of {count}",
            expected=", ".join(shard_path(output, number, count).name for number in missing[:_LISTED]),
            run=f"the same command with --shard {missing[0]}/{count}, or remove all shards",
        )
    found = [shard_path(output, index % count + 1, count) / "parts" / f"{part.number:06}" for index, part in
             enumerate(parts)]  # fmt: skip
    with ThreadPoolExecutor() as pool:
        expected = list(pool.map(lambda part: part_fingerprint(part, treatment), parts))
    differing = [
        (path, part)
        for path, part, fingerprint in zip(found, parts, expected, strict=True)
        if not path.is_dir() or read_account(path)["fingerprint"] != fingerprint
    ]
    if differing:
        names = sorted({path.parent.parent.name for path, _ in differing})
        raise LineageError(
            f"shards of {output} were made of other text, with another tokenizer or other settings",
            found=f"{len(differing)} of {len(parts)} parts differ, in {', '.join(names[:_LISTED])}; "
            f"the first holds {differing[0][1].pieces[0].file}",
            expected="the same files, tokenizer and options on every machine",
            run="the same command with --shard again for these, after removing them",
        )
    return found
