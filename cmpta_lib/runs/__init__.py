"""Runs as folders: trained once, whoever asks, finalised with checksums."""
