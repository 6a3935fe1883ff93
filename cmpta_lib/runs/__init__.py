"""Runs as folders: trained once, whoever asks, sealed when finished."""
