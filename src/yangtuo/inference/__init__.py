"""Engines behind one protocol, and conversations over any of them."""
