"""Rows for new pieces: initialised from text or from related rows, fitted to the model's own states."""
