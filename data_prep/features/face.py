"""Faces of a clip's pictures -> frames of the set "mediapipe-1": pose, landmarks and expression of one face (149 columns)."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from data_prep import packages
from data_prep.features.media import needed

POSE = ("pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz")  # mm and radians, named as OpenFace does
POINTS = tuple(f"{axis}_{i}" for axis in "xy" for i in range(68))  # iBUG's
COLUMNS = (*POSE, *POINTS, "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # fer's order
# The 68 iBUG points among MediaPipe's 468, as in bytedance/LatentSync (Apache-2.0), latentsync/utils/image_processor.py.
_IBUG = [
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63, 105, 66, 107, 336, 296, 334, 293,
    301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380, 61, 39, 37, 0, 267,
    269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
]  # fmt: skip
# Points of a head that jaw and brows do not move: x right, y down, z away, in mm; from MediaPipe's canonical_face_model.obj.
_HEAD = {
    4: (0, 5, -76), 6: (0, -25, -58), 10: (0, -83, -45), 33: (-44, -27, -32), 263: (44, -27, -32), 133: (-19, -26, -38),
    362: (19, -26, -38), 129: (-18, 10, -49), 358: (18, 10, -49), 117: (-53, -9, -30), 346: (53, -9, -30),
    54: (-63, -66, -14), 284: (63, -66, -14), 127: (-77, -24, 20), 356: (77, -24, 20),
}  # fmt: skip


def follow(pictures: Iterator[np.ndarray], notes: Counter[str]) -> np.ndarray:
    """One face of a clip, picture by picture: of those in a tenth of them or more, the one whose area in all is the largest.

    `pictures` are (H, W, 3) uint8 RGB, upright; the same object again costs nothing. `notes` grows by `several_faces` (another
    is in a fifth of them or more), and as `each_frame` says. Returns (T, 149) float32 as `COLUMNS` names them, a row a
    picture, T = 0 without a face; raises ImportError without mediapipe or ai-edge-litert, OSError as `packages.gather`.
    """
    chains: list[dict[int, np.ndarray]] = []  # a face's square and row (3 + 149,) by the number of the picture
    before, found, count = None, list[np.ndarray](), 0
    for count, picture in enumerate(pictures, 1):
        if picture is not before:
            found = [np.concatenate([_square(points), _row(picture, points)]) for points in _meshes(picture)]
        before = picture
        _link(found, chains, count - 1)
    stay = (chain for chain in chains if 10 * len(chain) >= count)
    taken = max(stay, key=lambda chain: sum(one[2] ** 2 for one in chain.values()), default={})
    notes.update(["several_faces"] * any(5 * len(chain) >= count and chain is not taken for chain in chains))
    rows = np.array([*taken.values()]).reshape(-1, 3 + len(COLUMNS))[:, 3:]
    return each_frame(rows, np.array([*taken]), np.arange(count), notes)


def each_frame(rows: np.ndarray, seen: np.ndarray, frames: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """A face's row (F,) for each of the `frames` (T,), from its `rows` (N, F) at those `seen` (N,); both increase.

    Without it a frame has the nearest earlier row, at the start the first (`frames_without_face`); where nine of ten and more
    are without, nothing is left: (0, F), `no_face`.
    """
    present = np.isin(frames, seen)
    if 10 * present.sum() < max(len(frames), 1):
        notes.update(["no_face"] * (len(frames) > 0))
        return np.zeros((0, rows.shape[1]), np.float32)
    notes.update(["frames_without_face"] * np.count_nonzero(~present))
    return rows[np.maximum(np.searchsorted(seen, frames, side="right") - 1, 0)].astype(np.float32)


def landmarks(picture: np.ndarray) -> np.ndarray | None:
    """The 68 iBUG points of the largest face of an (H, W, 3) uint8 RGB picture, in its pixels: (68, 2) float32, or None."""
    found = max(_meshes(picture), key=lambda points: _square(points)[2], default=None)
    return None if found is None else found[_IBUG, :2]


def _square(points: np.ndarray) -> np.ndarray:
    """The square around a face: its centre's x and y, its side."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return np.array([*(low + high) / 2, max(high - low)])


def _link(found: list[np.ndarray], chains: list[dict[int, np.ndarray]], tick: int) -> None:
    """Each face goes on with a chain whose last square it overlaps, the nearest pairs first; else it starts one."""
    x, y, side = np.array([chain[next(reversed(chain))][:3] for chain in chains]).reshape(-1, 3).T
    far = np.array([np.maximum(abs(x - one[0]), abs(y - one[1])) / (side + one[2]) * 2 for one in found])  # 1 = they touch
    left = dict(enumerate(found))
    for face, chain in sorted(np.argwhere(far < 1).tolist(), key=lambda pair: far[*pair]):
        if face in left and tick not in chains[chain]:
            chains[chain][tick] = left.pop(face)
    chains.extend({tick: one} for one in left.values())


def _row(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A face's 149 columns; pose is where a generic head is and how it is turned (R = Rx Ry Rz) before a pinhole camera."""
    cv2, net = needed("cv2"), _models()[2]
    height, width = picture.shape[:2]
    focal = 250 * (width / 640 + height / 480)  # OpenFace's guess where nobody says
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    head, seen = np.array([*_HEAD.values()], float), points[[*_HEAD], :2].astype(float)
    # SQPnP needs no start and finds the best of all poses: no other picture has a say, and none flips.
    _, turn, at = cv2.solvePnP(head, seen, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    r = cv2.Rodrigues(turn)[0]
    angles = np.arctan2(-r[1, 2], r[2, 2]), np.arcsin(np.clip(r[0, 2], -1, 1)), np.arctan2(-r[0, 1], r[0, 0])
    # The outer eye corners' distance in space (the mesh knows depth): in the picture it shrinks as the head turns.
    ibug = (points[_IBUG, :2] - points[_IBUG, :2].mean(0)) / np.linalg.norm(points[33] - points[263])
    # fer's own detector cuts squares of 1.28 (1.21 to 1.35) of the mesh's side, 0.1 (0.07 to 0.13) higher: CREMA-D.
    x, y, side = _square(points)
    steps = np.arange(max(round(1.28 * side), 1)) - 0.64 * side
    rows, columns = (y - 0.1 * side + steps).astype(int), (x + steps).astype(int)
    square = picture[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]  # beyond the picture its edge goes on
    grey = cv2.resize(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    net.set_tensor(net.get_input_details()[0]["index"], (grey.astype(np.float32) / 127.5 - 1)[None, :, :, None])
    net.invoke()
    return np.concatenate([at.ravel(), angles, ibug.T.ravel(), net.get_tensor(net.get_output_details()[0]["index"])[0]])


def _meshes(picture: np.ndarray) -> list[np.ndarray]:
    """The 468 points of each face: (468, 3) float32 in the picture's pixels, depth to the same scale."""
    (finder, mesh, _), size, found = _models(), np.array(picture.shape[1::-1]), list[np.ndarray]()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # protobuf's, about a call inside mediapipe
        boxes = [d.location_data.relative_bounding_box for d in finder.process(np.ascontiguousarray(picture)).detections or ()]
        squares = [(size * (b.xmin + b.width / 2, b.ymin + b.height / 2), max(size * (b.width, b.height))) for b in boxes]
        # The detector misses a face that fills the picture. The mesh finds it, but none below a third of what it is shown.
        for centre, side in [*squares[:4], (size / 2, max(size))]:  # each costs 5 ms
            if found and side == max(size):
                break
            x0, y0, x1, y1 = np.concatenate([centre - side, centre + side]).clip(0).astype(int)  # twice the face
            part = np.ascontiguousarray(picture[y0:y1, x0:x1])
            for face in (mesh.process(part).multi_face_landmarks or ()) if part.size else ():
                points = np.array([(p.x, p.y, p.z) for p in face.landmark]) * np.take(part.shape, (1, 0, 1)) + (x0, y0, 0)
                if (abs(points[:, :2].mean(0) - centre) < side / 2).all():  # not a neighbour, who has a square too
                    found.append(points.astype(np.float32))
    return found


@cache
def _models() -> tuple[Any, Any, Any]:
    """MediaPipe's detector of near and far faces, its mesh, and fer's net, once a process."""
    net_file, stderr = packages.expression_net(), os.dup(2)
    try:  # C++ libraries write to it as they start, without Python
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        known = needed("mediapipe.python.solutions")
        detector = known.face_detection.FaceDetection(model_selection=1)
        mesh = known.face_mesh.FaceMesh(static_image_mode=True)  # static: no picture depends on another
        net = needed("ai_edge_litert.interpreter").Interpreter(str(net_file), num_threads=1)
        net.allocate_tensors()
        for graph in (detector, mesh):
            graph.process(np.zeros((64, 64, 3), np.uint8))  # it has started when this is done
        return detector, mesh, net
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
