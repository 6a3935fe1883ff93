"""From lists of unequal length to arrays that are zero-padded at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad_frames(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Clips (T, F) of one width -> (B, T, F) float32, zero-padded at the end, and their lengths (B,)."""
    lengths = np.array([len(array) for array in arrays], np.int64)
    padded = np.zeros((len(arrays), lengths.max(), arrays[0].shape[1]), np.float32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded, lengths


def pad_ids(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids -> (B, L) int64, zero-padded at the end, and their lengths (B,)."""
    lengths = np.array([len(ids) for ids in rows], np.int64)
    padded = np.zeros((len(rows), lengths.max()), np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded, lengths
