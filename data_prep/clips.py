"""A folder of recordings and its labels.csv -> the features of every clip, from which `--data FOLDER` trains."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from cmpta_lib import files
from cmpta_lib.data.corpus import MODALITIES, SPLITS
from data_prep import features, recordings, tasks
from data_prep.features import LONGEST_S, SETS, Recipe, Unusable, find_set
from data_prep.public_pickles import MOST_NAME_BYTES
from data_prep.published import path
from data_prep.recordings import COLUMNS, FORMAT, MADE, OUT, TABLE, some

# Those of whose versions numbers may depend.
_PACKAGES = ("ai-edge-litert", "av", "ctranslate2", "faster-whisper", "mediapipe", "numpy", "opencv-contrib-python", "opensmile")


def _options(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.error = lambda message: parser.exit(2, f"{prog}: {message} (see {prog} --help)\n")  # type: ignore[method-assign]
    add, ready = parser.add_argument, "NAME=HOP_MS of ready frames in <clip>.NAME.npy, or none"
    add("folder", metavar="FOLDER", help=f"recordings, at any depth, and {TABLE}")
    add("--labels", type=path, metavar="FILE", help=f"another table with the columns {', '.join(COLUMNS)}; two are needed")
    add("--to", type=path, metavar="OUT", help=f"where features go (default: FOLDER/{OUT})")
    add("--audio", default="egemaps", metavar="SET", help=f"egemaps (default), whisper, {ready}")
    add("--vision", metavar="SET", help=f"mediapipe (default), openface, {ready}")
    add("--openface-csv", type=path, metavar="FOLDER", help="with OpenFace's <clip>.csv, which are then vision")
    listen = "hear the words of clips without text, with this Whisper model or folder of one (default: whisper-base)"
    add("--transcribe", nargs="?", const="whisper-base", metavar="MODEL", help=listen)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="clips at a time (default: one a core)")
    add("--longest", type=float, default=LONGEST_S, metavar="SECONDS", help="that a clip may be (default: %(default)g)")
    people = "where no split by people is possible, deal clips by label, and warn"
    add("--same-people", action="store_true", help=people)
    options = parser.parse_args(argv)
    if options.jobs < 1 or not 0 < options.longest < float("inf"):
        parser.error("--jobs must be 1 or more, and --longest a number of seconds above 0")
    if options.openface_csv and options.vision not in (None, "openface"):
        parser.error("--openface-csv and --vision say different things of vision; give one")
    return options


def _recipe(options: argparse.Namespace) -> Recipe:
    from data_prep.features import speech

    vision = options.vision or ("openface" if options.openface_csv else "mediapipe")
    recipe = Recipe(find_set("audio", options.audio), find_set("vision", vision), "", options.longest, None, options.openface_csv)
    if recipe.audio == SETS["audio"]["whisper"] or options.transcribe:
        recipe = replace(recipe, whisper=speech.find(options.transcribe or "whisper-base"))
    return features.listening(recipe, recipe.whisper) if options.transcribe and recipe.whisper else recipe


def main(argv: Sequence[str] | None = None, prog: str = "cmpta data clips") -> int:
    """Make the features of a folder's clips as a command line says; returns the exit code.

    Raises:
        ValueError, OSError: folder, table or options cannot be as they are, or too little can be used; says what to do.
        ImportError: as `features.extract`.
    """
    options = _options(argv, prog)
    about, folder = tasks.said(options.folder)
    folder = folder.resolve()
    out, table = (options.to or folder / OUT).resolve(), options.labels or folder / TABLE
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of recordings, and there is none; correct its name")
    if folder.is_relative_to(out) or recordings.found_in(out)[0]:
        raise ValueError(f"{out} holds recordings, and features need a folder of their own; name another by --to")
    if not table.is_file() and (first := next(iter(recordings.found_in(folder, out)[0]), "")):
        raise FileNotFoundError(f"{table} is not there: its first line is {','.join(COLUMNS)} and the next like {first},LABEL,,,,")
    recipe = _recipe(options)
    rows, told = recordings.listed(folder, table, out)
    left_out = dict.fromkeys(rows["file"][rows["path"].isna()], "there is no such recording")
    rows = rows[rows["path"].notna()].reset_index(drop=True)
    rows["split"], warned = recordings.split(rows, options.same_people, table)
    shared = Counter(str(one) for place in rows["path"] for one in features.files_of(place, recipe))
    if twice := [one for one, count in shared.items() if count > 1]:
        raise ValueError(f"{folder}: several recordings share {some(twice)}; give each its own")
    told += [f"WARNING: {len(left_out)} rows of {table.name} have no recording: {some(left_out)}"] * bool(left_out)
    for line in (*features.said(recipe), *told, *warned, *_checked(rows, about, table)):
        print(f"{folder}: {line}", file=sys.stderr)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", blocking=False):
            started = time.monotonic()
            made = _made(rows, recipe, out / "clips", options.jobs, left_out)
            files.write_text(out / TABLE, rows[[*COLUMNS]].to_csv(index=False, lineterminator="\n"))
            rows = rows[rows["file"].isin(made)].reset_index(drop=True)
            _checked(rows, about, table, left_out)
            _write(folder, out, rows, made, recipe, left_out, warned)
    except Timeout:
        raise ValueError(f"{out}: another call is at work there; wait for it") from None
    took, frames = time.monotonic() - started, sum(one["frames"]["vision"][0] for one in made.values())
    notes: Counter[str] = sum((Counter(one["notes"]) for one in made.values()), Counter())
    rates = Counter(one["rate_hz"] for one in made.values() if one["rate_hz"])
    sizes = ", ".join(f"{(rows['split'] == name).sum()} {name}" for name in SPLITS)
    print(f"{len(made)} clips of {rows['speaker'].nunique()} people: {sizes}; {len(left_out)} left out; {len(made) / took * 60:.0f} a minute")
    if frames:
        print(f"{1 - notes['frames_without_face'] / frames:.1%} of {frames} frames have a face")
    if len(rates) > 1:
        print("WARNING: sample rates differ: " + ", ".join(f"{rate} Hz in {count}" for rate, count in rates.most_common()))
    print(f"notes: {', '.join(f'{kind} {count}' for kind, count in sorted(notes.items())) or 'none'}")
    choice = tasks.split_choice(options.folder)[0]
    print(f"next: cmpta reproduce --data {shlex.quote(f'{choice}{folder if out == folder / OUT else out}')}")
    return 0


def _checked(rows: pd.DataFrame, about: tasks.Said, table: Path, left_out: Mapping[str, str] | None = None) -> list[str]:
    """What is still to be said of the labels before training; raises ValueError where they, or splits, cannot be trained on."""
    if empty := [name for name in SPLITS if not (rows["split"] == name).any()]:
        why = f"{len(left_out)} clips cannot be used, such as {next(iter(left_out.values()))}" if left_out else "add some"
        raise ValueError(f"{table}: no clip is in {' or in '.join(empty)}; {why}")
    try:
        recordings.task_of(rows, about, table)
    except ValueError as error:
        if rows["label"].map(tasks.read_number).isna().any():
            raise
        return [f"before training: {error}"]
    return []


def _made(
    rows: pd.DataFrame, recipe: Recipe, place: Path, jobs: int, left_out: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """What became of each clip whose features are in `place` now, by file; of the others `left_out` gets the reason."""
    for leftover in place.glob(".*.partial"):  # of a call that was killed
        leftover.unlink()
    made_by = {one.name: one.version for one in distributions() if one.name in _PACKAGES}
    made_by |= {one.name: files.sha256(one) for one in recipe.whisper.glob("model.*")} if recipe.whisper else {}
    calls = [(row.path, row.file, place / _name(row.file), recipe, row.text, made_by) for row in rows.itertuples()]
    found: dict[str, dict[str, Any]] = {}
    form = "{n_fmt} of {total_fmt} clips, {postfix}{remaining} left"
    with tqdm(total=len(calls), bar_format=form, file=sys.stderr, mininterval=1) as bar:
        for call, one in zip(calls, recordings.each(make, calls, jobs), strict=True):
            bar.set_postfix_str(f"{60 * (bar.n + 1) / (time.time() - bar.start_t):.0f} a minute, ", refresh=False)
            bar.update()
            if isinstance(one, Unusable):
                left_out[call[1]] = str(one)
                bar.write(f"left out: {one}", file=sys.stderr)
            else:
                found[call[1]] = one
    for modality in MODALITIES:  # ready frames may be of any width, but of one
        widths = Counter(one["frames"][modality][1] for one in found.values() if one["frames"][modality][0])
        for file in [file for file, one in found.items() if one["frames"][modality][0] and one["frames"][modality][1] != widths.most_common(1)[0][0]]:
            left_out[file] = f"{file}: {modality} is {found.pop(file)['frames'][modality][1]} wide, unlike most; make all alike"
            print(f"left out: {left_out[file]}", file=sys.stderr)
    return found


def _name(file: str) -> str:
    """A name that any disk takes, and no other clip has."""
    return f"{re.sub('[^0-9A-Za-z]+', '-', Path(file).stem)[:40]}-{hashlib.sha256(file.encode()).hexdigest()[:16]}.safetensors"


def make(
    place: Path, file: str, target: Path, recipe: Recipe, text: str, made_by: Mapping[str, str]
) -> dict[str, Any] | Unusable:
    """What became of a clip: its features are in `target`, made unless they are there from the same files by the same recipe.

    Raises:
        OSError: `target` cannot be written.
        ImportError: as `features.extract`.
    """
    from safetensors.numpy import save_file

    try:
        source = {one.name: files.sha256(one) for one in features.files_of(place, recipe)}
    except OSError as error:
        return Unusable(f"{place} cannot be read ({error.strerror}), or what belongs to it: {error.filename}")
    of = {"file": file, "source": source, "recipe": recipe.stored(), "heard": not text, "made_by": dict(made_by)}
    record = _kept(target)
    if record is None or any(record[key] != of[key] for key in of) or record["seconds"] > recipe.longest_s:
        found = recordings.attempt(place, recipe, text)
        if isinstance(found, Unusable):
            return found
        frames = {name: np.ascontiguousarray(getattr(found, name)) for name in MODALITIES}  # safetensors takes no other
        record = of | {"words": found.words, "seconds": found.seconds, "rate_hz": found.rate_hz, "notes": dict(found.notes)}
        record |= {"frames": {name: [*one.shape, hashlib.sha256(one).hexdigest()] for name, one in frames.items()}}
        with files.replacing(target) as partial:  # one key: several would be written in an order of chance
            save_file(frames, partial, {"clip": files.checksummed(record)})
    return record | {"features": target.name, "sha256": files.sha256(target)}


def _kept(target: Path) -> dict[str, Any] | None:
    """What an earlier call wrote of a clip; None where it did not, or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(target, "numpy") as file:
            text, frames = file.metadata()["clip"], {name: file.get_tensor(name) for name in MODALITIES}
        record: dict[str, Any] = json.loads(text)
        del record["seal"]
        hashes = {name: [*one.shape, hashlib.sha256(one).hexdigest()] for name, one in frames.items()}
        return record if record["frames"] == hashes and files.checksummed(record) == text else None
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        return None


def _write(
    folder: Path,
    out: Path,
    rows: pd.DataFrame,
    made: Mapping[str, Mapping[str, Any]],
    recipe: Recipe,
    left_out: Mapping[str, str],
    warned: Sequence[str],
) -> None:
    """Write clips.json, and the rows with their split as a table."""
    clips = []
    for row in rows.drop(columns="path").to_dict("records"):
        one = made[row["file"]]
        kept = {key: one[key] for key in ("features", "sha256", "seconds", "rate_hz", "notes")}
        clips.append(row | {"text": row["text"] or one["words"] or "", "heard": one["words"] is not None} | kept)
    visible = "".join(sign for sign in folder.name if sign.isprintable()).lstrip(".").strip()
    name = visible.encode()[:MOST_NAME_BYTES].decode(errors="ignore") or "recordings"
    said = {"format": FORMAT, "name": name, "recipe": recipe.stored(), "warnings": list(warned), "left_out": dict(left_out)}
    files.write_text(out / MADE, files.checksummed(said | {"clips": clips}))
