"""Frames of sound: openSMILE's eGeMAPS descriptors, or encoder states of a Whisper model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.features.media import needed


def egemaps(signal: np.ndarray, rate_hz: int) -> np.ndarray:
    """eGeMAPSv02's low-level descriptors, every 10 ms, as openSMILE itself gives them at this rate.

    Args:
        signal: (N,) float32 in [-1, 1).
    Returns:
        (T, 25) float32; T = 0 where the signal is too short for a frame.
    """
    import warnings

    if not len(signal):
        return np.zeros((0, 25), np.float32)
    with warnings.catch_warnings(record=True) as told:  # a signal too short for a frame is told, and one of NaN comes
        warnings.simplefilter("always")
        frames = _smile().process_signal(signal, rate_hz).to_numpy(np.float32)
    return frames[:0] if any("too short" in str(one.message) for one in told) else frames


@cache
def _smile() -> Any:
    opensmile = needed("opensmile", "features")
    return opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
