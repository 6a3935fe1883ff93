"""What a training step and an answer cost here, beside the bare LLM and beside the way CMPTA's ancestor does it."""
