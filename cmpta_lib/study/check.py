"""What a study needs and whether it is here: one screen, with the command for each thing that is missing.

Asks no network and makes nothing, so the answer comes at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from cmpta_lib import registry
from cmpta_lib.data.corpus import Language
from cmpta_lib.data.store import load_corpus
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm.files import OMNI_MODELS
from cmpta_lib.runs import provenance, store
from cmpta_lib.study.plan import CMPTA
from cmpta_lib.study.study import Study

COMMAND = "cmpta" if shutil.which("cmpta") else os.path.relpath(Path(sys.executable).with_name("cmpta"))
GPU_GB, MEMORY_GB = 12, 8  # what the paper profile needs with Qwen-1.8B; larger LLMs need more in proportion
# Bytes on disk: the published file and what it becomes; a run of the paper profile with its checkpoint.
CORPUS_GB = {"simsv2": 5.0, "meld": 1.5}
LLM_GB = {"qwen-1.8b": 3.7, "qwen1.5-1.8b": 3.7, "llama2-7b": 13.5, "chatglm3-6b-base": 12.5}
LLM_GB |= dict.fromkeys(llm_files.ENCODERS, 0.45)
LLM_GB |= dict(zip(OMNI_MODELS, (12.0, 22.4, 70.5), strict=True))
RUN_GB = 0.15  # on average: an adapter takes 0.1, a fine-tuned BERT 0.4
CHECKPOINT_GB = 2.0  # a fine-tuned BERT's, with both of its moments and its best weights
_LANGUAGES: Mapping[str, Language] = {"sims": "zh", "meld": "en"}  # of the published corpora, known before they are here
MISSING, OPTIONAL = "MISSING", "absent"  # of what a single row needs: that row says "not run", the rest goes on


@dataclass(frozen=True)
class Need:
    """One thing that a study needs: what was found, and what to do where it is not enough."""

    what: str
    found: str
    remedy: str = ""  # empty: nothing to do
    state: str = MISSING  # what it is as long as there is something to do

    @property
    def missing(self) -> bool:
        """Whether nothing can start before it is there."""
        return bool(self.remedy) and self.state != OPTIONAL


def needs(study: Study, notebooks: Collection[str]) -> list[Need]:
    """Everything that must be there before these notebooks' runs can start; nothing is made or fetched.

    The embedded default makes what it needs, and a user's own folder is checked when it is read.
    """
    planned = study.planned(notebooks)
    names = [] if study.data else [study.settings.corpora[key] for key in study.keys_of(notebooks)]
    corpora = {name: _corpus(study, name) for name in names if name in CORPUS_GB}
    wanted = [(name, "LLM", MISSING if name == study.llm_name else OPTIONAL) for name in study.llm_names(notebooks)]
    wanted += [(name, "text encoder", MISSING) for name in sorted(set(_encoders(study, notebooks).values()))]
    models = {name: _model(study, name, kind, state) for name, kind, state in wanted if not llm_files.is_tiny(name)}
    if study.settings.llm == "tiny" or study.smoke:
        return [*corpora.values(), *models.values()]
    omni = [str(one.row.changes["method.model.name"]) for one in planned if one.row.method == "omni"]
    models |= {name: _model(study, name, "omni model", OPTIONAL) for name in omni}
    sizes = CORPUS_GB | {name: LLM_GB.get(name, LLM_GB["qwen-1.8b"]) for name in models}
    largest = max((sizes[name] for name, need in models.items() if need.missing or not need.remedy), default=0)  # one at a time
    to_come = sum(sizes[name] for name, need in (corpora | models).items() if need.missing)
    machine = [_gpu(max(GPU_GB, round(1.5 * largest))), _memory(max(MEMORY_GB, round(1.3 * largest)))]
    disk = _disk(study, to_come + len(planned) * RUN_GB + CHECKPOINT_GB)
    return [*machine, *corpora.values(), *models.values(), *map(_recordings, names if omni else ()), disk]


def stored(study: Study, notebooks: Collection[str] = ()) -> list[Need]:
    """Everything stored, every byte of it compared with the hashes that were taken when it was written.

    Of the LLMs and text encoders, those that these notebooks (or all) need.
    """
    metas = sorted((study.cache / "data").glob("[!.]*/meta.json"))
    found = [_sound(f"contents of {meta.parent.name}", partial(load_corpus, meta.parent, deep=True)) for meta in metas]
    rows = {study.llm_name: CMPTA} | {study.llm_name_of(one.row): one.row for one in reversed(study.planned(notebooks))}
    models = {f"LLM {name}": partial(study.llm_of, row) for name, row in rows.items()}
    encoders = {f"text encoder {name}": partial(study.encoder, key) for key, name in _encoders(study, notebooks).items()}
    for what, resolved in (models | encoders).items():
        try:
            check = partial(llm_files.find, resolved(), study.cache / "llm", deep=True)
        except (OSError, ValueError) as error:
            found.append(Need(f"contents of {what}", str(error), "see above"))
        else:
            found.append(_sound(f"contents of {what}", check))
    for entry in store.found(study.root):
        if not isinstance(entry, store.Run):
            found.append(Need(f"run {entry[0].name}", entry[1]))
        elif entry.done:
            found.append(_sound(f"run {entry.folder.name}", entry.check))
    return found


def _encoders(study: Study, notebooks: Collection[str]) -> dict[Language, str]:
    """Language in which these notebooks' methods without an LLM read text -> what names the encoder."""
    keys = {one.key for one in study.planned(notebooks) if "encoder" in registry.ENTRIES[one.row.method].config.model_fields}
    return {language: study.encoder_names[language] for key, language in _LANGUAGES.items() if key in keys}


def tiny_models(study: Study, notebooks: Collection[str]) -> list[str]:
    """Names of the models that are made here for these notebooks, whoever makes them."""
    names = (*study.llm_names(notebooks), *_encoders(study, notebooks).values())
    return [name for name in dict.fromkeys(names) if llm_files.is_tiny(name)]


def _sound(what: str, check: Callable[[], object]) -> Need:
    try:
        check()
    except (OSError, ValueError) as error:
        return Need(what, str(error), "do what is said here, then call again", "DAMAGED")
    return Need(what, "as written")


def _corpus(study: Study, name: str) -> Need:
    what, folder = f"corpus {name}", study.cache / "data" / name
    make = f"{COMMAND} dry-run" if study.smoke else f"{COMMAND} data {name}    (or with --from FOLDER)"
    if not (folder / "meta.json").exists():
        return Need(what, "not prepared", make)
    try:
        corpus = load_corpus(folder)
    except ValueError as error:
        return Need(what, str(error), make)
    shown = " + ".join(str(len(split)) for split in corpus.splits.values()) + " clips"
    if corpus.generated and not study.smoke:  # somebody prepared a dry run's files by hand
        return Need(what, f"{shown}, generated", f"rm -r {_short(folder)}; {make}")
    return Need(what, shown + (", generated" if corpus.generated else ""))


def _model(study: Study, name: str, kind: str, state: str = MISSING) -> Need:
    what = f"{kind} {Path(name).name if Path(name).is_dir() else name}"
    try:
        folder = llm_files.locate(name)
    except (FileNotFoundError, ValueError) as error:
        if study.smoke and not study.own_llm:
            return Need(what, "not made yet", f"{COMMAND} dry-run", state)
        if Path(name).exists():
            return Need(what, str(error), "restore or fetch what is named here", state)
        return Need(what, "not on this machine", f"{COMMAND} weights {shlex.quote(name)}", state)
    size = sum(path.stat().st_size for path in llm_files.weight_files(folder)) / 1e9
    return Need(what, f"{size:.1f} GB of weights in {_short(folder)}", state=state)


def _recordings(corpus: str) -> Need:
    waits = registry.ENTRIES["omni"].waits
    reason = waits(corpus) if waits else ""
    return Need(f"recordings {corpus}", "not at hand" if reason else "at hand", reason, OPTIONAL)


def _gpu(wanted: int) -> Need:
    what = f"GPU, {wanted} GB"
    remedy = f"use a machine with an NVIDIA GPU; without one: make reproduce (embedded default), or {COMMAND} dry-run"
    name, size = provenance.first_gpu() or ("", 0.0)
    if not name:
        return Need(what, "no NVIDIA GPU or driver found (nvidia-smi)", remedy)
    if "+cpu" in version("torch"):
        return Need(what, f"{name}, {size:.0f} GB, but torch {version('torch')} is a CPU build", "make clean && make setup")
    return Need(what, f"{name}, {size:.0f} GB", "" if size >= wanted else remedy)


def _memory(wanted: int) -> Need:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Need(f"memory, {wanted} GB", f"{size:.0f} GB", "" if size >= wanted else "use a machine with more memory")


def _disk(study: Study, wanted: float) -> Need:
    """Room for what is still to be fetched, converted and trained; the hub's cache may lie on another disk."""
    place = next(folder for folder in (study.root, *study.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    remedy = "make room there, or name another folder in the environment variable CMPTA_RUNS"
    return Need(f"disk, {wanted:.0f} GB", f"{free:.0f} GB free at {_short(study.root)}", "" if free >= wanted else remedy)


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if home != "/" and str(path).startswith(home + os.sep) else str(path)


def screen(study: Study, found: Sequence[Need]) -> str:
    """The list as text, missing things with their commands."""
    width = max((len(need.what) for need in found), default=0)
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    lines = [f"profile {study.profile}, {seeds}{', dry run on synthetic files' if study.smoke else ''}"]
    for need in found:
        lines.append(f"  {need.state if need.remedy else 'ok':8}{need.what:{width}}  {need.found}")
        if need.remedy:
            lines.append(f"  {'':8}{'':{width}}  -> {need.remedy}")
    return "\n".join(lines)
