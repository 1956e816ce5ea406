"""Tensors on disk: read, written, laid out, grown, merged. Knows no text and no training."""
