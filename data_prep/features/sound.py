"""Frames of sound: openSMILE's eGeMAPS descriptors, or what a Whisper model's encoder makes of it."""

from __future__ import annotations

import tempfile
import wave
from array import array
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.features import media, speech

WIDTH = 512  # of Whisper base


def egemaps(signal: np.ndarray, rate_hz: int) -> np.ndarray:
    """eGeMAPSv02's low-level descriptors, every 10 ms: the numbers of `opensmile.Smile.process_signal`.

    That keeps a recording in memory eight times over; here openSMILE reads a file, as its command-line tool does.

    Args:
        signal: (N,) float32 in [-1, 1).
    Returns:
        (T, 25) float32; T = 0 where the signal is too short for a frame.
    """
    tool, found = _smile(), array("f")
    with tempfile.TemporaryDirectory() as place:
        with wave.open(f"{place}/sound.wav", "wb") as out:
            out.setparams((1, 2, rate_hz, 0, "NONE", ""))
            for start in range(0, len(signal), rate_hz):
                out.writeframes((signal[start : start + rate_hz] * 32768).astype("<i2").tobytes())
        source = f"{tool.default_config_root}/shared/standard_wave_input.conf.inc"
        engine = tool._smile({**tool._options(), "source": source, "filename": f"{place}/sound.wav"})
        engine.external_sink_set_callback_ex("extsink", lambda frame, _: found.frombytes(frame.tobytes()))
        engine.run()
        engine.free()
    return np.array(found, np.float32).reshape(-1, tool.num_features)


@cache
def _smile() -> Any:
    opensmile = media.needed("opensmile")
    return opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)


def whisper(signal: np.ndarray, rate_hz: int, folder: Path | None) -> np.ndarray:
    """States of a Whisper model's encoder, every 20 ms; it hears 30 s at a time.

    Args:
        signal: (N,) float32 in [-1, 1).
        folder: the model's; None = the one that `cmpta weights whisper-base` builds.
    Returns:
        (T, 512) float32, T = ceil(seconds * 50).
    Raises:
        FileNotFoundError: it is not there; ValueError: it is of another size.
    """
    hears, window = speech.model(folder or speech.find("whisper-base")), 30 * speech.RATE_HZ
    heard, states = media.resampled(signal, rate_hz, speech.RATE_HZ), []
    for start in range(0, len(heard), window):
        piece = heard[start : start + window]
        mel = hears.feature_extractor(np.pad(piece, (0, window - len(piece))), padding=0)
        states.append(np.asarray(hears.encode(mel), np.float32)[0])
        if (width := states[-1].shape[1]) != WIDTH:
            raise ValueError(f"{folder}: expected Whisper base, of {WIDTH} numbers a frame, and this has {width}; choose that")
    return np.concatenate(states or [np.zeros((0, WIDTH), np.float32)])[: ceil(len(signal) * 50 / rate_hz)]
