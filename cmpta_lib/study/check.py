"""What a study needs and whether it is here, with the command for each missing thing; makes nothing and asks no network."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

import psutil

from cmpta_lib import registry
from cmpta_lib.config import nearest
from cmpta_lib.data.store import load_corpus
from cmpta_lib.files import Damaged, read_checksummed
from cmpta_lib.llm import files as llm_files
from cmpta_lib.paper import CLAIMS
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.progress import Status, summarise
from cmpta_lib.study.plan import Planned, printed
from cmpta_lib.study.study import Study

COMMAND = "cmpta" if shutil.which("cmpta") else os.path.relpath(Path(sys.executable).with_name("cmpta"))
CORPUS_GB = {"simsv2": 5.0, "meld": 1.5}  # of disk: the published file and what it becomes
LLM_GB = {"qwen-1.8b": 3.7, "qwen1.5-1.8b": 3.7, "llama2-7b": 13.5, "chatglm3-6b-base": 12.5}  # of weights
LLM_GB |= dict.fromkeys(llm_files.ENCODERS, 0.45) | dict(zip(llm_files.OMNI_MODELS, (12.0, 22.4, 70.5), strict=True))
RUN_GB, CHECKPOINT_GB = 0.15, 2.0  # on average; at most, of a fine-tuned BERT with both moments and its best weights
MISSING, OPTIONAL = "MISSING", "absent"  # absent: a row says "not run", and the rest goes on


@dataclass(frozen=True)
class Need:
    """One thing that a study needs: what was found, and what to do where it is not enough."""

    what: str
    found: str
    remedy: str = ""  # empty: nothing to do
    state: str = MISSING  # what it is as long as there is something to do
    gb: float = 0.0  # on disk
    note: str = ""  # what waits for it

    @property
    def missing(self) -> bool:
        """Whether nothing can start before it is there."""
        return bool(self.remedy) and self.state != OPTIONAL


def needs(study: Study, notebooks: Collection[str]) -> list[Need]:
    """Everything that must be there before these notebooks' runs can start; nothing is made or fetched.

    The embedded default makes what it needs, and a user's own folder is checked when it is read.
    """
    planned, is_published = study.planned(notebooks), study.settings.llm != "tiny" and not study.smoke
    names = [] if study.data else [study.settings.corpora[key] for key in study.keys_of(notebooks)]
    corpora = [_corpus(study, name) for name in names if name in CORPUS_GB]
    wanted = {name: ("LLM", MISSING if name == study.llm_name else OPTIONAL) for name in study.llm_names(notebooks)}
    wanted |= dict.fromkeys(sorted(study.encoder_names(notebooks).values()), ("text encoder", MISSING))
    omni = [str(one.row.changes["method.model.name"]) for one in planned if one.row.method == "omni" and is_published]
    wanted |= dict.fromkeys(omni, ("omni model", OPTIONAL))
    models = [_model(study, name, *about) for name, about in wanted.items() if not llm_files.is_tiny(name)]
    models = [replace(need, note=_waiting(study, planned, need)) if need.state == OPTIONAL else need for need in models]
    if not is_published:
        return [*corpora, *models]
    waits = registry.ENTRIES["omni"].waits
    reasons = {name: waits(name) for name in names if omni and waits}
    media = [Need(f"recordings {name}", "not at hand" if why else "at hand", why, OPTIONAL) for name, why in reasons.items()]
    largest = max((need.gb for need in models if need.state != OPTIONAL), default=0.0)  # one is used at a time
    to_come = sum(need.gb for need in (*corpora, *models) if need.missing) + len(planned) * RUN_GB + CHECKPOINT_GB
    return [*_machine(study.root, largest, to_come), *corpora, *models, *media]


def _waiting(study: Study, planned: Sequence[Planned], need: Need) -> str:
    """The rows that wait for a model of their own, and the claims that stay open as long as one of their methods is missing."""
    rows = {one.row.name for one in planned if one.row.llm and need.what.endswith(f" {study.llm_name_of(one.row)}")}
    open_claims = [
        f'"{claim.says}" ({claim.section})'
        for claim in CLAIMS
        if claim.id.startswith("best-") and any(line.method in rows for key in claim.corpora for line in printed(key))
    ]
    said = f"for the row {', '.join(sorted(rows))} alone, on a GPU of {_gpu_gb(need.gb):.0f} GB"
    return f"{said}; until it is run these claims stay open: {'; '.join(open_claims)}" if rows else ""


def _gpu_gb(model_gb: float) -> float:
    """What a GPU should hold for a model of this size; the least is Qwen-1.8B's. Estimated: nobody has measured it."""
    return max(12, 1.5 * model_gb)


def stored(study: Study, notebooks: Collection[str] = ()) -> list[Need]:
    """Everything stored, every byte of it compared with the hashes that were taken when it was written.

    Corpora, tiny models, records of LLMs, stages that runs share, models' statements, runs and their checkpoints; of the
    LLMs and text encoders that lie elsewhere, those that these notebooks (or all) need.
    """
    checks: dict[str, Callable[[], object]] = {}
    for pattern, check in _STORED.items():
        found = sorted(path for path in study.root.glob(pattern) if path.name[0] != ".")
        checks |= {str(path.relative_to(study.root)): partial(check, path) for path in found}
    models = {f"LLM {name}": name for name in study.llm_names(notebooks)}
    models |= {f"text encoder {name}": name for name in study.encoder_names(notebooks).values()}
    checks |= {what: partial(study.verify, name) for what, name in models.items()}
    said = list[tuple[str, str]]()
    with Status() as status, status.doing("reading every stored byte") as report:
        for what, look in checks.items():
            report(len(said) / len(checks))
            try:
                look()
                wrong = ""
            except (OSError, ValueError) as error:
                wrong = str(error)
            said.append((f"contents of {what}", wrong))
    runs = map(summarise, store.found(study.root))
    said += [(f"run {one.folder.name}", one.detail) for one in runs if one.state in ("finished", "damaged")]
    remedy = "do what is said here, then call again"
    return [Need(what, why or "as written", remedy if why else "", "DAMAGED") for what, why in said]


def _corpus_of_this_name(folder: Path) -> None:
    if not folder.name.startswith(name := load_corpus(folder, deep=True).name):
        raise Damaged(f"{folder} holds the corpus '{name}'; remove the folder and call again")


def _statements(path: Path) -> None:
    cache = resolve_name("cmpta_lib.beyond.knowledge:StatementCache")(path.stem, path.parent)
    if lines := cache.refused:
        raise Damaged(f"{path}: {lines} lines are cut, changed, or another model's, and not used; remove it")


def _kept(path: Path) -> None:
    from cmpta_lib.runs.checkpoint import CHECKPOINT, read

    try:
        read(path, path.parent.name[-12:] if path.name == CHECKPOINT else path.stem)
    except Damaged as error:
        raise Damaged(f"{path}: {error}; remove it: it is made anew") from None


# What is kept below the runs folder -> what raises where it is not as it was written.
_STORED: Mapping[str, Callable[[Path], object]] = {
    "cache/data/*/": _corpus_of_this_name,
    "cache/llm/*/": llm_files.tiny_fingerprint,
    "cache/llm/*.json": partial(read_checksummed, remedy="remove it and call again: it is made anew"),
    "cache/stages/*.pt": _kept,
    "cache/knowledge/*.txt": _statements,
    "*/checkpoint.pt": _kept,
}


def opened(study: Study, notebooks: Collection[str] = (), models: bool = True) -> dict[str, Exception]:
    """Open every corpus and model that these notebooks (or all) need, made first where it must be.

    Returns:
        What is wrong, by a corpus' key or a model's name; it goes to `Study.without`, and all else can go on. A model that
        is merely not here is no fault: its rows say so.
    """
    wrong: dict[str, Exception] = {}

    def look(name: str, into: Callable[[], object]) -> None:
        try:
            into()
        except (ValueError, OSError, RuntimeError) as error:
            if name in study.every_key or not isinstance(error, FileNotFoundError):
                wrong[name] = error

    with ThreadPoolExecutor(2) as pool:  # tiny models are made by processes of their own
        corpora = {key: partial(study.corpus, key) for key in study.keys_of(notebooks)}
        list(pool.map(look, corpora, corpora.values()))
        if models and len(wrong) < len(corpora):  # without any corpus nothing is made
            asked = study.models(notebooks)
            list(pool.map(look, asked, asked.values()))
    study.without |= {name: str(error) for name, error in wrong.items()}
    return wrong


def _corpus(study: Study, name: str) -> Need:
    what, folder, size = f"corpus {name}", study.cache / "data" / name, CORPUS_GB[name]
    make = f"{COMMAND} dry-run" if study.smoke else f"{COMMAND} data {name}    (or with --from FOLDER)"
    try:
        corpus = load_corpus(folder)
    except (OSError, ValueError) as error:
        return Need(what, str(error) if (folder / "meta.json").exists() else "not prepared", make, gb=size)
    shown = " + ".join(str(len(split)) for split in corpus.splits.values()) + " clips" + ", generated" * corpus.generated
    # Somebody may have prepared a dry run's files by hand, and no result may come from them.
    return Need(what, shown, f"rm -r {folder}; {make}" if corpus.generated and not study.smoke else "", gb=size)


def _model(study: Study, name: str, kind: str, state: str) -> Need:
    what, size = f"{kind} {Path(name).name if Path(name).is_dir() else name}", LLM_GB.get(name, LLM_GB["qwen-1.8b"])
    try:
        folder = llm_files.locate(name)
        here = sum(path.stat().st_size for path in llm_files.weight_files(folder)) / 1e9
        return Need(what, f"{here:.1f} GB of weights in {folder}", "", state, size)
    except (FileNotFoundError, ValueError) as error:
        if Path(name).exists():
            return Need(what, str(error), "restore or fetch what is named here", state, size)
    fetch = "dry-run" if study.smoke and not study.own_llm else f"weights {shlex.quote(name)}"
    hint = nearest(name, ["tiny", *llm_files.PUBLISHED, *llm_files.ENCODERS])
    return Need(what, f"not on this machine{hint}", f"{COMMAND} {fetch}", state, size)


def _machine(root: Path, model_gb: float, to_come_gb: float) -> list[Need]:
    """GPU and memory for a model of this size, and disk for what is still to come."""
    gpu, size = provenance.first_gpu() or ("", 0.0)
    shown = f"{gpu}, {size:.0f} GB" if gpu else "no NVIDIA GPU or driver found (nvidia-smi)"
    other = f"use a machine with an NVIDIA GPU; without one: make reproduce, or {COMMAND} dry-run"
    if gpu and "+cpu" in version("torch"):
        shown, size, other = f"{shown}, but torch {version('torch')} is a CPU build", 0.0, "make clean && make setup"
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free / 1e9
    memory, room = psutil.virtual_memory().total / 1e9, "make room there, or set the environment variable CMPTA_RUNS"
    asked = [("GPU", _gpu_gb(model_gb), shown, size, other)]
    asked += [("memory", max(8, 1.3 * model_gb), f"{memory:.0f} GB", memory, "use a machine with more memory")]
    asked += [("disk", to_come_gb, f"{free:.0f} GB free at {root}", free, room)]
    return [Need(f"{what}, {gb:.0f} GB", found, fix if here < round(gb) else "") for what, gb, found, here, fix in asked]


def screen(study: Study, found: Sequence[Need]) -> str:
    """The list as text: what is missing first, each with its command and what waits for it."""
    count, seeds = sum(need.missing for need in found), ", ".join(map(str, study.seeds))
    lines = [f"{count or 'nothing'} missing: profile {study.profile}, seeds {seeds}{', smoke run' if study.smoke else ''}"]
    for need in sorted(found, key=lambda need: (not need.missing, not need.remedy)):
        lines.append(f"  {need.state if need.remedy else 'ok':8}{need.what}: {need.found}")
        lines += [f"          -> {need.remedy}"] if need.remedy else []
        lines += textwrap.wrap(need.note, 98, initial_indent=" " * 10, subsequent_indent=" " * 10)
    return "\n".join(lines)
