"""A folder of recordings and its labels.csv -> the features of every clip, from which `--data FOLDER` trains."""

from __future__ import annotations

import argparse
import hashlib
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
from statistics import mode
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cmpta_lib import files
from cmpta_lib.data.corpus import MODALITIES, SPLITS
from data_prep import features, recordings, tasks
from data_prep.features import LONGEST_S, SETS, WHISPER, Recipe, Unusable, find_set
from data_prep.published import path
from data_prep.recordings import COLUMNS, FORMAT, MADE, OUT, TABLE, some

# Those of whose versions numbers may depend.
_PACKAGES = ("ai-edge-litert", "av", "ctranslate2", "faster-whisper", "mediapipe", "opencv-contrib-python", "opensmile")


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
    listen = "hear the words of clips without text, by this Whisper model or folder of one (default: whisper-base)"
    add("--transcribe", nargs="?", const=WHISPER, default="", metavar="MODEL", help=listen)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="clips at a time (default: one a core)")
    add("--longest", type=float, default=LONGEST_S, metavar="SECONDS", help="that a clip may be (default: %(default)g)")
    people = "where no split by people is possible, deal clips by label, and warn"
    add("--same-people", action="store_true", help=people)
    options = parser.parse_args(argv)
    if options.jobs < 1 or not 0 < options.longest < float("inf"):
        parser.error("--jobs must be 1 or more, and --longest a number of seconds above 0")
    if options.openface_csv and options.vision not in (None, "openface"):
        parser.error("--openface-csv and --vision say different things of vision; give one")
    options.vision = options.vision or ("openface" if options.openface_csv else "mediapipe")
    return options


def main(argv: Sequence[str] | None = None, prog: str = "cmpta data clips") -> int:
    """Make the features of a folder's clips as a command line says; returns the exit code.

    Raises ValueError or OSError where folder, table or options cannot be or too little can be used, ImportError as `extract`.
    """
    options = _options(argv, prog)
    about, folder = tasks.said(options.folder)
    folder = folder.resolve()
    out, table = (options.to or folder / OUT).resolve(), options.labels or folder / TABLE
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of recordings, and there is none; correct its name")
    if folder.is_relative_to(out) or recordings.found_in(out)[0]:
        raise ValueError(f"{out} holds recordings, and features need a folder of their own; name another by --to")
    name = re.sub(r"[^\w .-]", "", folder.name).strip(" .")[:30] or "recordings"  # caches and runs are named by it
    if out.exists() and not _is_ours(out, name):
        raise ValueError(f"{out} holds what was not made of {folder} by this command; name another folder by --to")
    if not table.is_file():
        first = next(iter(recordings.found_in(folder, out)[0]), "(there are no recordings)")
        like = f"its first line is {','.join(COLUMNS)} (the last four may be left out), the next like {first},LABEL,,,,"
        raise FileNotFoundError(f"{table}, which says the labels, is not there: {like}")
    sets = find_set("audio", options.audio), find_set("vision", options.vision)
    recipe = Recipe(*sets, longest_s=options.longest, openface=options.openface_csv)
    recipe = features.listening(recipe, options.transcribe, f"--audio {options.audio}")
    labels = {"labels": files.sha256(table), "labels_here": table.resolve() == folder / TABLE}
    rows, told = recordings.listed(folder, table, out, COLUMNS[:2])
    left_out = {file: f"there is no recording {file!r}" for file in rows["file"][rows["path"].isna()]}
    rows = rows[rows["path"].notna()].reset_index(drop=True)
    rows["split"], warned = recordings.split(rows, options.same_people, table)
    told += [f"words: {(rows['text'] == '').sum()} of {len(rows)} clips have no text, and are heard"] * bool(recipe.recogniser)
    shared = Counter(str(one) for place in rows["path"] for one in features.beside(place, recipe).values())
    if twice := [one for one, count in shared.items() if count > 1]:
        raise ValueError(f"{folder}: several recordings share {some(twice)}; give each its own")
    for line in (*features.said(recipe), *told, *warned, *_checked(rows, about, table, left_out)):
        print(f"{folder}: {line}", file=sys.stderr)
    try:
        (out / "clips").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{out} cannot be made ({error.strerror}); name another folder by --to") from None
    (out / MADE).unlink(missing_ok=True)  # whatever comes, nobody trains on what an earlier call made of other labels
    made = _made(rows, recipe, out / "clips", options.jobs, left_out)
    rows = rows[rows["file"].isin(made)].reset_index(drop=True)
    pending = _checked(rows, about, table, left_out)
    if table.resolve() != out / TABLE:
        files.write_text(out / TABLE, rows[COLUMNS].to_csv(index=False, lineterminator="\n"))
    clips = [row | made[row["file"]] for row in rows.drop(columns="path").to_dict("records")]
    for clip in clips:
        words = clip.pop("words")
        clip |= {"text": clip["text"] or words or "", "heard": words is not None}
    said = {"format": FORMAT, "name": name, "recipe": recipe.stored(), "warnings": warned, "left_out": left_out}
    said |= labels
    files.write_text(out / MADE, files.checksummed(said | {"clips": clips}))
    _tell(clips, recipe, len(left_out))
    data = f"{tasks.split_choice(options.folder)[0]}{out if options.to else folder}"
    print(*pending or [f"next: cmpta reproduce --data {shlex.quote(data)}"], sep="\n")
    return 0


def _is_ours(out: Path, name: str) -> bool:
    """Whether nothing in a folder would be lost but what a call for recordings of this name made, perhaps not to its end."""
    if (out / MADE).exists():
        return bool(files.read_checksummed(out / MADE, "remove it, and call again").get("name") == name)
    return out.is_dir() and ((out / "clips").is_dir() or not (out / TABLE).exists())


def _tell(clips: Sequence[Mapping[str, Any]], recipe: Recipe, left_out: int) -> None:
    """Print what the clips hold."""
    sizes = ", ".join(f"{sum(clip['split'] == name for clip in clips)} {name}" for name in SPLITS)
    people = {clip["speaker"] for clip in clips} - {""}
    print(f"{len(clips)} clips ({sizes}) of {len(people) or 'unknown'} people; {left_out} left out")
    notes: Counter[str] = sum((Counter(clip["notes"]) for clip in clips), Counter())
    frames = [clip["shapes"]["vision"][0] for clip in clips if clip["shapes"]["vision"][0]]
    if frames and recipe.vision == SETS["vision"]["mediapipe"]:
        share = 1 - notes["frames_without_face"] / sum(frames)
        print(f"frames with a face: {share:.1%} of {sum(frames)}, in {len(frames)} clips that show one")
    print(f"notes: {', '.join(f'{kind} {count}' for kind, count in sorted(notes.items())) or 'none'}")
    frames_of = {clip["file"]: sum(shape[0] for shape in clip["shapes"].values()) for clip in clips}
    if empty := [clip["file"] for clip in clips if not frames_of[clip["file"]] and not clip["text"]]:
        print(f"WARNING: {len(empty)} clips have neither words nor sound nor face: {some(empty)}")


def _checked(rows: pd.DataFrame, about: tasks.Said, table: Path, left_out: Mapping[str, str]) -> list[str]:
    """What is still to be said of the labels before training; raises ValueError where they, or splits, cannot be trained on."""
    if empty := [name for name in SPLITS if name not in set(rows["split"])]:
        why = f"{len(left_out)} clips cannot be used ({next(iter(left_out.values()))})" if left_out else "add some"
        raise ValueError(f"{table}: no clip is in {' or in '.join(empty)}; {why}")
    try:
        recordings.task_of(rows, about, table)
    except ValueError as error:
        if rows["label"].map(tasks.read_number).isna().any():
            raise
        return [f"before training: {error}"]
    return []


def _made(rows: pd.DataFrame, recipe: Recipe, place: Path, jobs: int, left_out: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What became of each clip whose features are in `place` now, by file; of the others `left_out` gets the reason."""
    made_by = {one.name: one.version for one in distributions() if one.name in _PACKAGES}
    made_by |= {one.name: files.sha256(one) for one in recipe.whisper.glob("model.*")} if recipe.whisper else {}
    calls, found = [], dict[str, dict[str, Any]]()
    for row in rows.itertuples():  # names that any disk takes
        name = f"{re.sub('[^0-9A-Za-z]+', '-', row.path.stem)[:40]}-{hashlib.sha256(row.file.encode()).hexdigest()[:16]}"
        own = replace(recipe, recogniser="" if row.text else recipe.recogniser)
        calls.append((row.path, row.file, place / f"{name}.safetensors", own, made_by))
    form, started = "{n_fmt} of {total_fmt} clips, {remaining} left{postfix}", time.monotonic()
    every_s = 1 if sys.stderr.isatty() else 30  # a page or a log keeps every line
    with tqdm(total=len(calls), bar_format=form, file=sys.stderr, mininterval=every_s, maxinterval=every_s) as bar:
        for call, one in zip(calls, recordings.each(make, calls, jobs), strict=True):
            bar.update()
            bar.set_postfix_str(f"{60 * bar.n / (time.monotonic() - started):.0f} clips a minute", refresh=False)
            if isinstance(one, Unusable):
                left_out[call[1]] = str(one)
                bar.write(f"left out: {one}", file=sys.stderr)
            else:
                found[call[1]] = one
    for modality in MODALITIES:
        widths = {file: one["shapes"][modality][1] for file, one in found.items() if one["shapes"][modality][0]}
        usual = mode(widths.values()) if widths else 0
        for file in (file for file, width in widths.items() if width != usual):  # ready frames
            left_out[file] = f"{file} has {widths[file]} {modality} features a frame, and most clips {usual}; make them alike"
            print(f"left out: {left_out[file]}", file=sys.stderr)
            del found[file]
    return found


def make(place: Path, file: str, target: Path, recipe: Recipe, made_by: Mapping[str, str]) -> dict[str, Any] | Unusable:
    """What became of a clip: its features are in `target`, made unless they are there from the same files by the same recipe.

    Raises OSError where `target` cannot be written, and ImportError as `extract`.
    """
    from safetensors.numpy import save_file

    try:
        source = {one.name: files.sha256(one) for one in (place, *features.beside(place, recipe).values()) if one.is_file()}
    except OSError as error:
        return Unusable(f"{error.filename} cannot be read ({error.strerror}); copy it anew, or grant it")
    of = {"file": file, "source": source, "recipe": recipe.stored(), "made_by": dict(made_by)}
    about = target.with_suffix(".json")  # what the features are of, for the next call
    try:
        record = files.read_checksummed(about, "")
        files.check(target.parent, {target.name: record["sha256"]}, "")
    except files.Damaged:
        record = {}
    if any(record.get(key) != value for key, value in of.items()) or record["seconds"] > recipe.longest_s:
        made = recordings.attempt(place, recipe)
        if isinstance(made, Unusable):
            return made
        frames: dict[str, np.ndarray] = {name: np.ascontiguousarray(getattr(made, name)) for name in MODALITIES}
        with files.replacing(target) as partial:
            save_file(frames, partial)
        record = of | {"words": made.words, "seconds": made.seconds, "notes": dict(made.notes)}
        record |= {"shapes": {name: list(one.shape) for name, one in frames.items()}, "sha256": files.sha256(target)}
        files.write_text(about, files.checksummed(record))
    return {key: record[key] for key in ("words", "seconds", "notes", "shapes", "sha256", "source")} | {"features": target.name}
