"""Options: one truth for flags and YAML keys."""

from __future__ import annotations

import pytest

from yangtuo.config.options import Source, parse_size, split_source
from yangtuo.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("texts/zh", Source("texts/zh", "zh", 1.0)),
        ("texts/zh:0.2", Source("texts/zh", "zh", 0.2)),
        ("en=texts/novel.txt:2", Source("texts/novel.txt", "en", 2.0)),
        ("/a/三国演义.txt.gz", Source("/a/三国演义.txt.gz", "三国演义", 1.0)),
        ("modelscope:owner/name", Source("modelscope:owner/name", "name", 1.0)),
    ],
)
def test_sources_are_split_into_name_path_and_weight(text: str, source: Source) -> None:
    assert split_source(text) == source


@pytest.mark.parametrize(("text", "size"), [("2GB", 2_000_000_000), ("500 MB", 500_000_000), ("1KiB", 1024), ("7", 7)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_size("much")
