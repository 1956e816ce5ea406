"""Pieces: which ones a tokenizer has, how text becomes ids, how new pieces are learned, joined and audited.

Two families: SentencePiece BPE (LLaMA, Mistral) and byte-level BPE (Llama 3, SmolLM2, Qwen). Knows nothing of weights.
"""
