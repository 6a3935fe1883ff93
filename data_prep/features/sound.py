"""Frames of sound: openSMILE's eGeMAPS descriptors, or what a Whisper model's encoder makes of it."""

from __future__ import annotations

import tempfile
import wave
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.features import SETS, media, speech


def egemaps(signal: np.ndarray, rate_hz: int) -> np.ndarray:
    """eGeMAPSv02's low-level descriptors, every 10 ms, the same as `opensmile.Smile.process_signal` gives.

    That holds a recording eight times in memory. So openSMILE reads it from a file, as it does by itself elsewhere.

    Args:
        signal: (N,) float32 in [-1, 1).
    Returns:
        (T, 25) float32; T = 0 where the signal is too short for a frame.
    """
    tool, frames = _smile(), []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "sound.wav"
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, rate_hz, 0, "NONE", ""))
            for start in range(0, len(signal), rate_hz):
                out.writeframes((signal[start : start + rate_hz] * 32768).astype("<i2").tobytes())
        source = Path(tool.default_config_root) / "shared" / "standard_wave_input.conf.inc"
        engine = tool._smile({**tool._options(), "source": str(source), "filename": str(path)})
        engine.external_sink_set_callback_ex("extsink", lambda frame, _: frames.append(frame.copy()))
        engine.run()
        engine.free()
    return np.array(frames, np.float32).reshape(-1, SETS["audio"]["egemaps"].width or 0)


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
