"""The published corpora by name: fetched, verified and converted where they are missing, also from a command line."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.data.corpus import SPLITS, Corpus, Sample, Task
from cmpta_lib.data.store import load_corpus, write_corpus
from data_prep import hub, verify

NAMES = ("simsv2", "meld")  # of the modules that bring them in


def fetch(names: Iterable[str], cache: Path) -> list[Corpus]:
    """Those of the named corpora that are published, below `cache`; generated ones need no fetching.

    Raises:
        ValueError, OSError: as `data_prep.simsv2.prepare` and `data_prep.meld.prepare`.
    """
    return [import_module(f"data_prep.{name}").prepare(cache) for name in names if name in NAMES]


def converted(
    target: Path, task: Task, found: Sequence[hub.Found], read: Callable[[str, Counter[str]], Iterator[Sample]],
    origins: Mapping[str, str], size_bytes: int,
) -> Corpus:  # fmt: skip
    """The corpus in `target`, written from these files unless it is there; raises as `write_corpus`, and OSError without room.

    Args:
        found: the files; the first says whether all is generated.
        read: (split, counts of repairs to add to) -> its samples; raises ValueError where a file does not conform.
        origins: split -> what messages call it.
        size_bytes: free space that it may take.
    """
    sources = {name: digest for one in found for name, digest in one.sources.items()}
    if target.exists() and (corpus := load_corpus(target)).sources == sources:
        return corpus
    repairs: Counter[str] = Counter()
    splits = {split: read(split, repairs) for split in SPLITS}

    def first() -> Iterator[Sample]:  # asked for when what a killed conversion left is gone
        hub.need_space(target, size_bytes, f"the corpus {target.name}")
        yield from splits[SPLITS[0]]

    return write_corpus(
        target, name=target.name, task=task, splits=splits | {SPLITS[0]: first()}, generated=found[0].generated,
        sources=sources, repairs=repairs, origins=origins,
    )  # fmt: skip


def path(text: str) -> Path:  # what argparse calls it in an error
    return Path(files.expanded(text))


def convert(
    argv: Sequence[str] | None, prog: str, what: str | None, prepare: Callable[..., Corpus], folders: Mapping[str, str]
) -> int:
    """Prepare a corpus as a command line says and print what was found in it; returns the exit code.

    Args:
        prepare: takes the cache, then one folder or None for each of `folders`.
        folders: option -> what its help says.
    """
    parser = argparse.ArgumentParser(prog=prog, description=what)
    parser.error = lambda message: parser.exit(2, f"{prog}: {message} (see {prog} --help)\n")  # type: ignore[method-assign]
    given = [parser.add_argument(name, type=path, metavar="FOLDER", help=text).dest for name, text in folders.items()]
    cache, default = files.runs_folder() / "cache", "the default: %(default)s"
    parser.add_argument("--cache", type=path, metavar="FOLDER", default=cache, help=default)
    options = parser.parse_args(argv)
    try:
        corpus = prepare(options.cache, *(getattr(options, name) for name in given))
    except (ValueError, OSError) as error:
        print(f"{prog}: {files.explained(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    print(verify.report(corpus))
    print(options.cache / "data" / corpus.name)
    return 0
