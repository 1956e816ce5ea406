"""ChatGLM-6B, the first of its name: config, tokenizer and model for transformers, written from measured facts."""
