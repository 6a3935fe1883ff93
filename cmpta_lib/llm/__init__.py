"""The frozen LLM: finding its files, loading its weights, running packed batches through it."""
