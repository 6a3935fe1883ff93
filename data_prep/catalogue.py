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
