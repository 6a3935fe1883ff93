"""OpenFace's tables -> frames of the set "openface-1": the 177 columns of SIMS-V2's vision, by name, as OpenFace wrote them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from cmpta_lib.data.corpus import shown
from data_prep.features.face import POINTS, POSE, each_frame
from data_prep.features.media import Unusable

_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)  # facial action units of known intensity
# OpenFace's order, which MMSA-FET, by the authors of SIMS-V2, keeps. Intensities lie in [0, 5]; presence is 0 or 1.
COLUMNS = (*POSE, *POINTS, *(f"AU{i:02}_r" for i in _UNITS), *(f"AU{i:02}_c" for i in sorted((*_UNITS, 28))))
_HELP = ("success", "face_id", "timestamp", "frame")  # used where they are there
_HOP_S = 0.04  # of the set's frames


def read(path: Path, notes: Counter[str]) -> np.ndarray:
    """A row every 40 ms: the last at or before that time, by `timestamp`; without usable ones, each row is a frame.

    Of several faces (`face_id`) it is the one found most often; a row without `success` shows none. `notes` grows by
    `no_time_stamps`, by `several_faces` (another is found in a fifth of the frames or more), and as `face.each_frame` says.
    Returns (T, 177) float32 as `COLUMNS` names them, also what is not finite; T = 0 without a face.

    Raises:
        Unusable: it is not there or no such table; names what is missing, or row and column.
    """
    table = _table(path)
    success, who, times, number = table[[*_HELP]].to_numpy(float).T
    rising = (np.diff(times) >= 0).all() and not table.duplicated(["timestamp", "face_id"]).any()
    step_s = float(np.median(np.diff(np.unique(times)))) if len(np.unique(times)) > 1 else 0.0
    if not (rising and 0.004 <= step_s <= 1):  # as a recording's frames are; a file was met whose stamps are 1 ms apart
        notes["no_time_stamps"] += 1
        several = len(np.unique(who)) > 1 and np.isfinite(number).all()  # a frame then has several rows
        times = _HOP_S * (np.unique(number, return_inverse=True)[1] if several else np.arange(len(table)))
        step_s = _HOP_S
    frames = np.unique(times)
    ticks = frames[0] + _HOP_S * np.arange(np.ceil((frames[-1] - frames[0] + step_s - 0.001) / _HOP_S))
    latest = np.searchsorted(frames, ticks + 0.0005, side="right") - 1.0  # time stamps are rounded to milliseconds
    latest += 0.5 * (ticks - frames[latest.astype(int)] > 1.5 * max(_HOP_S, step_s))  # in a gap: without a face
    faces, counts = np.unique(who[success == 1], return_counts=True)
    notes.update(["several_faces"] * bool(sum(5 * counts >= len(frames)) > 1))
    taken = (success == 1) & (who == (faces[counts.argmax()] if len(faces) else None))
    rows = table.loc[taken, [*COLUMNS]].to_numpy(np.float32)
    return each_frame(rows, np.searchsorted(frames, times[taken]), latest, notes)


def _table(path: Path) -> pd.DataFrame:
    """The columns of use, as numbers, under their names without spaces; of `_HELP` also those that are not there."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is no file")
        table = pd.read_csv(path, skipinitialspace=True, na_values=["-nan(ind)"], encoding="utf-8-sig", low_memory=False)
        table.columns = table.columns.str.strip().str.partition(".").get_level_values(0)  # pandas: the second "x_0" is "x_0.1"
        if wrong := [name for name in COLUMNS if list(table).count(name) != 1]:
            more = f" and {len(wrong) - 3} more" * (len(wrong) > 3)
            raise ValueError(f"of its {len(COLUMNS)} columns there is not one each of {', '.join(wrong[:3])}{more}")
        if table.empty or not isinstance(table.index, pd.RangeIndex):
            raise ValueError("rows are longer than the header" if len(table) else "there is no row")
        if (cut := table.iloc[:, -2:].isna().all(axis=1)).any():
            raise ValueError(f"row {int(cut.argmax()) + 1} ends before its last columns")
        table = table.reindex(columns=[*COLUMNS, *_HELP]).fillna({"success": 1, "face_id": 0})
        for name in table.select_dtypes(exclude="number"):
            row = int((pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()).to_numpy().argmax())
            raise ValueError(f"row {row + 1}, column {name}: {shown(table[name][row])} is no number")
    except (OSError, ValueError) as error:
        why = "it is not there" if isinstance(error, FileNotFoundError) else str(error).strip()[:200]
        raise Unusable(f"{path}: expected OpenFace's CSV (UTF-8), but {why}; call FeatureExtraction -pose -2Dfp -aus") from None
    return table
