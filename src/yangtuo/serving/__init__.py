"""The OpenAI API over any engine, and the web page over that."""
