"""SentencePiece models as files have them, whole or not."""

from __future__ import annotations

import pytest

from yangtuo.errors import FileError
from yangtuo.vocab.sentencepiece_model import parse_model


def test_a_piece_that_is_no_utf8_is_refused(pico_sentencepiece: bytes) -> None:
    """Protobuf gives such a text as bytes, at which all that reads pieces would stumble later."""
    piece = next(piece.piece for piece in parse_model(pico_sentencepiece, "pico").pieces if len(piece.piece) == 3)
    with pytest.raises(FileError, match=r"piece [\d,]+ is no UTF-8"):
        parse_model(pico_sentencepiece.replace(piece.encode(), b"\xff" * len(piece.encode()), 1), "broken")
