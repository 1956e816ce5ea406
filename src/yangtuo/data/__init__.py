"""Text to batches: readers, cleaning, tokens on disk, packing, conversations and the chat template.

Knows tokenizers, not weights, and takes plain values, never a stage's config.
"""
