"""Frames of sound: openSMILE's eGeMAPS descriptors, or what a Whisper model's encoder makes of it."""

from __future__ import annotations

import warnings
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.features import SETS, media, speech


def egemaps(signal: np.ndarray, rate_hz: int) -> np.ndarray:
    """eGeMAPSv02's low-level descriptors, every 10 ms, as openSMILE itself gives them at this rate.

    Args:
        signal: (N,) float32 in [-1, 1).
    Returns:
        (T, 25) float32; T = 0 where the signal is too short for a frame.
    """
    if not len(signal):
        return np.zeros((0, SETS["audio"]["egemaps"].width or 0), np.float32)
    with warnings.catch_warnings(record=True) as told:  # of too short a signal openSMILE makes a row of NaN, and says so
        warnings.simplefilter("always")
        frames = _smile().process_signal(signal, rate_hz).to_numpy(np.float32)
    return frames[:0] if any("too short" in str(one.message) for one in told) else frames


@cache
def _smile() -> Any:
    opensmile = media.needed("opensmile")
    return opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)


def whisper(signal: np.ndarray, rate_hz: int, folder: Path | None) -> np.ndarray:
    """States of Whisper base's encoder, every 20 ms; it hears 30 s at a time.

    Args:
        signal: (N,) float32 in [-1, 1).
        folder: the model's; None = the one that `cmpta weights whisper-base` builds.
    Returns:
        (T, 512) float32, T = ceil(seconds * 50).
    Raises:
        FileNotFoundError: it is not there; ValueError: it is of another size.
    """
    hears, width = speech.model(folder or speech.find("whisper-base")), SETS["audio"]["whisper"].width
    heard, windows = media.resampled(signal, rate_hz, speech.RATE_HZ), [np.zeros((0, width or 0), np.float32)]
    for start in range(0, len(heard), 30 * speech.RATE_HZ):
        piece = heard[start : start + 30 * speech.RATE_HZ]
        mel = hears.feature_extractor(np.pad(piece, (0, 30 * speech.RATE_HZ - len(piece))), padding=0)
        windows.append(np.asarray(hears.encode(mel), np.float32)[0])
        if windows[-1].shape[1] != width:
            raise ValueError(f"{folder}: Whisper base has states of {width} numbers, not {windows[-1].shape[1]}; choose that")
    return np.concatenate(windows)[: ceil(len(signal) * 50 / rate_hz)]
