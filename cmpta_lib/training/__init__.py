"""Training one run: the loop, its checkpoint, and answering a split."""
