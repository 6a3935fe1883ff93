"""The embedded default: generated corpora with a known answer, and the tiny LLM."""
