"""ChatGLM-6B's tokenizer for transformers, over `ice_text.model`.

As in the original, a text is cut at the literal names of five special tokens, which then are those tokens: what users
write belongs into it with `split_special_tokens=True` only. Yangtuo's own prompts never pass through here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from yangtuo.vocab import ice_text
from yangtuo.vocab.sentencepiece_model import CONTROL, load_processor, parse_model

_SPECIAL = {
    "unk_token": "<unk>",
    "bos_token": ice_text.BEGIN,
    "eos_token": ice_text.END,
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}
_GMASK = "[gMASK]"


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Text to ids and back; a prompt ends with [gMASK] and `<sop>`, an answer behind it with `<eop>`.

    Padding goes to the left, with the common attention mask of 0 and 1. With `num_image_tokens`, as in the first
    checkpoints, ids below it are images and the text's ids follow.
    """

    vocab_files_names = {"vocab_file": ice_text.MODEL_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(self, vocab_file: str, num_image_tokens: int | None = None, **options: Any) -> None:
        file = Path(vocab_file)
        self.vocab_file = vocab_file
        self.num_image_tokens = ice_text.num_image_tokens(file.parent) if num_image_tokens is None else num_image_tokens
        proto = parse_model(file.read_bytes(), vocab_file)
        self._processor = load_processor(proto)
        self._controls = {piece.piece for piece in proto.pieces if piece.type == CONTROL}
        for name in ("model_specific_special_tokens", "gmask_token", "end_token"):
            options.pop(name, None)  # text is not cut at [gMASK] and </s>, whatever published settings call them
        options |= {name: str(options.get(name) or text) for name, text in _SPECIAL.items()}
        # Whitespace on both sides of such a name is lost, newlines too.
        cut_at = [AddedToken(options[name], lstrip=True, rstrip=True, special=True) for name in _SPECIAL]
        options["added_tokens_decoder"] = {self._convert_token_to_id(token.content): token for token in cut_at}
        options.setdefault("clean_up_tokenization_spaces", True)
        super().__init__(num_image_tokens=self.num_image_tokens, **options)

    @property
    def vocab_size(self) -> int:
        """Number of ids, image tokens included."""
        return self.num_image_tokens + int(self._processor.get_piece_size())

    @property
    def gmask_token_id(self) -> int:
        """The id that stands behind a prompt, where the answer is to begin."""
        return self._convert_token_to_id(_GMASK)

    def get_vocab(self) -> dict[str, int]:
        """All ids by the text of their piece."""
        return {self._convert_id_to_token(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(self._processor.encode(ice_text.to_pieces(text), out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return self.num_image_tokens + int(self._processor.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        piece = index - self.num_image_tokens  # a model has more rows than there are pieces
        return str(self._processor.id_to_piece(piece)) if piece < self._processor.get_piece_size() else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces; control tokens give nothing."""
        kept = [token for token in tokens if token not in self._controls]
        return ice_text.from_pieces(str(self._processor.decode(kept)) if kept else "")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Prompt, [gMASK], `<sop>`; where an answer is given, it and `<eop>`."""
        begin, end = (self._convert_token_to_id(token) for token in (ice_text.BEGIN, ice_text.END))
        prompt = [*token_ids_0, self.gmask_token_id, begin]
        return prompt if token_ids_1 is None else [*prompt, *token_ids_1, end]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copies `ice_text.model` into a directory, and returns its path there."""
        name = (f"{filename_prefix}-" if filename_prefix else "") + ice_text.MODEL_FILE
        target = Path(save_directory) / name
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
