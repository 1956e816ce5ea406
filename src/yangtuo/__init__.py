"""Yangtuo teaches an English Llama Chinese, or any other language, and keeps its English."""

__version__ = "0.1.0"
