"""Words of a recording, as a Whisper model hears them (faster-whisper, on the CPU)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cmpta_lib import files
from data_prep import packages
from data_prep.features import media

RATE_HZ = 16_000  # of what Whisper hears


def find(name: str) -> Path:
    """The folder of a Whisper model, by that or by the name `whisper-base`.

    Raises:
        FileNotFoundError: it is not there, or not all that CTranslate2 needs; says what to do.
    """
    folder = packages.cache(name) if name in packages.MODELS else Path(files.expanded(name))
    absent = [one for one in ("model.bin", "config.json", "tokenizer.json", "vocabulary.*") if not any(folder.glob(one))]
    if absent:
        what = f"{folder} is no Whisper model as CTranslate2 has them ({', '.join(absent)} missing)"
        convert = "convert yours by ct2-transformers-converter with --copy_files tokenizer.json"
        raise FileNotFoundError(f"{what}: call `cmpta weights whisper-base`, or {convert}")
    return folder


@cache
def model(folder: Path) -> Any:
    """The faster-whisper model in a folder, one for each process; RuntimeError where it is damaged."""
    library = media.needed("faster_whisper", "transcribe")
    # One thread sums in the same order on every machine, and --jobs use the cores; float32 hears more of CREMA-D than int8.
    return library.WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1, local_files_only=True)


def recognise(signal: np.ndarray, rate_hz: int, folder: Path | None) -> str:
    """What is said in (N,) float32 sound, the same words each time; "" where nobody speaks."""
    heard = media.resampled(signal, rate_hz, RATE_HZ)
    if not len(heard):
        return ""
    hears = model(folder or find("whisper-base"))
    # Without a voice detector silence has words, and other temperatures than 0 draw at random.
    found, _ = hears.transcribe(heard, beam_size=5, temperature=0.0, vad_filter=True, condition_on_previous_text=False)
    return " ".join(one.text.strip() for one in found).strip()
