"""Learned pieces on disk: a SentencePiece model that holds nothing else.

Any SentencePiece tool can open the file, as it can the piece files that others publish. Knows no directory.
"""

from __future__ import annotations

from collections.abc import Sequence

from sentencepiece import sentencepiece_model_pb2

from yangtuo.vocab.sentencepiece_model import NORMAL, UNKNOWN


def sentencepiece_pieces(pieces: Sequence[str]) -> bytes:
    """A serialized BPE model of `pieces`, best first: the first gets score -1, the next -2, and so on."""
    model = sentencepiece_model_pb2.ModelProto()
    model.pieces.add(piece="<unk>", score=0.0, type=UNKNOWN)
    for rank, piece in enumerate(pieces, 1):
        model.pieces.add(piece=piece, score=-rank, type=NORMAL)
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, -1, -1, -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return bytes(model.SerializeToString())
