"""Which runs make which table, on which corpora, with which backbone."""
