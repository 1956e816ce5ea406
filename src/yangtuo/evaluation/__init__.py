"""Measures of a model: bits per byte of text, questions answered."""
