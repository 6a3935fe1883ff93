"""What a study needs and whether it is here: one screen, with the command for each thing that is missing.

Imports no torch and asks no network, so the answer comes at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from cmpta_lib import registry
from cmpta_lib.beyond import media
from cmpta_lib.config import EncoderConfig, LLMConfig
from cmpta_lib.data.corpus import Language
from cmpta_lib.data.store import load_corpus
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm.files import OMNI_MODELS
from cmpta_lib.runs import sharing, store
from cmpta_lib.runs.progress import table
from cmpta_lib.study import naming
from cmpta_lib.study.plan import CMPTA, Planned
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


OPTIONAL = "absent"  # the state of what a single row needs: that row says "not run", the rest goes on


@dataclass(frozen=True)
class Need:
    """One thing that a study needs: what was found, and what to do where it is not enough."""

    what: str
    found: str
    remedy: str = ""  # empty: nothing to do
    state: str = "MISSING"  # what it is as long as there is something to do

    @property
    def missing(self) -> bool:
        """Whether nothing can start before it is there."""
        return bool(self.remedy) and self.state != OPTIONAL


def needs(study: Study, notebooks: Collection[str]) -> list[Need]:
    """Everything that must be there before these notebooks' runs can start; nothing is made or fetched.

    The embedded default makes what it needs, and a user's own folder is checked when it is read.
    """
    names = [study.settings.corpora[key] for key in study.keys_of(notebooks) if not study.data]
    published = [name for name in names if name in CORPUS_GB]
    corpora = [_corpus(study, name) for name in published]
    llms = {name: _model(study, name, "LLM") for name in study.llm_names(notebooks) if not llm_files.is_tiny(name)}
    for name in llms.keys() - {study.llm_name}:
        llms[name] = replace(llms[name], state=OPTIONAL)
    llms |= {name: _model(study, name, "text encoder") for name in _encoders(study, notebooks) if not llm_files.is_tiny(name)}
    if study.settings.llm == "tiny" or study.smoke:
        return [*corpora, *llms.values()]
    asked = [one for one in study.planned(notebooks) if one.row.method == "omni"]
    llms |= {name: replace(_model(study, name, "omni model"), state=OPTIONAL) for name in map(_omni_name, asked)}
    recordings = [_recordings(name) for name in names if asked]
    sizes = {name: LLM_GB.get(name, LLM_GB["qwen-1.8b"]) for name in llms}
    to_come = sum(CORPUS_GB[name] for name, need in zip(published, corpora, strict=True) if need.missing)
    to_come += sum(sizes[name] for name, need in llms.items() if need.missing)
    here = [sizes[name] for name, need in llms.items() if need.state != OPTIONAL or not need.remedy]
    largest = max(here, default=0)  # one is loaded at a time
    machine = [_gpu(max(GPU_GB, round(1.5 * largest))), _memory(max(MEMORY_GB, round(1.3 * largest)))]
    room = to_come + len(study.planned(notebooks)) * RUN_GB + CHECKPOINT_GB
    return [*machine, *corpora, *llms.values(), *recordings, _disk(study, room)]


def _omni_name(one: Planned) -> str:
    return str(one.row.changes["method.model.name"])


def _recordings(corpus: str) -> Need:
    reason = media.lacks(corpus)
    return Need(f"recordings {corpus}", "not at hand" if reason else "at hand", reason, OPTIONAL)


def stored(study: Study, notebooks: Collection[str] = ()) -> list[Need]:
    """Everything stored, every byte of it compared with the hashes that were taken when it was written.

    Of the LLMs and text encoders, those that these notebooks (or all) need.
    """
    found = []
    for meta in sorted((study.cache / "data").glob("[!.]*/meta.json")):
        found.append(_sound(f"contents of {meta.parent.name}", partial(load_corpus, meta.parent, deep=True)))
    rows = {study.llm_name: CMPTA} | {study.llm_name_of(one.row): one.row for one in reversed(study.planned(notebooks))}
    models: list[tuple[str, str, Callable[[], LLMConfig | EncoderConfig]]]
    models = [("LLM", name, partial(study.llm_of, row)) for name, row in rows.items()]
    encoders = {study.encoder_names[language]: language for language in _languages(study, notebooks)}
    models += [("text encoder", name, partial(study.encoder, language)) for name, language in encoders.items()]
    for kind, name, resolved in models:
        try:
            model = resolved()
        except (OSError, ValueError) as error:
            found.append(Need(f"contents of {kind} {name}", str(error), "see above"))
        else:
            check = partial(llm_files.find, model, study.cache / "llm", deep=True)
            found.append(_sound(f"contents of {kind} {model.name}", check))
    for entry in store.found(study.root):
        if not isinstance(entry, store.Run):
            found.append(Need(f"run {entry[0].name}", entry[1]))
        elif entry.done:
            found.append(_sound(f"run {entry.folder.name}", entry.check))
    return found


def _languages(study: Study, notebooks: Collection[str]) -> list[Language]:
    """The languages in which these notebooks' methods without an LLM read text."""
    fields = {name: entry.config.model_fields for name, entry in registry.ENTRIES.items()}
    keys = {one.key for one in study.planned(notebooks) if "encoder" in fields[one.row.method]}
    return [language for key, language in _LANGUAGES.items() if key in keys]


def _encoders(study: Study, notebooks: Collection[str]) -> list[str]:
    return sorted({study.encoder_names[language] for language in _languages(study, notebooks)})


def tiny_models(study: Study, notebooks: Collection[str]) -> list[str]:
    """Names of the models that are made here for these notebooks, whoever makes them."""
    return [name for name in (*study.llm_names(notebooks), *_encoders(study, notebooks)) if llm_files.is_tiny(name)]


def _sound(what: str, check: Callable[[], object]) -> Need:
    try:
        check()
    except (OSError, ValueError) as error:
        return Need(what, str(error), "do what is said here, then call again", "DAMAGED")
    return Need(what, "as written")


def _corpus(study: Study, name: str) -> Need:
    what, folder = f"corpus {name}", study.cache / "data" / name
    make = f"{COMMAND} rehearse" if study.smoke else f"{COMMAND} data {name}    (or with --from FOLDER)"
    if not (folder / "meta.json").exists():
        return Need(what, "not prepared", make)
    try:
        corpus = load_corpus(folder)
    except ValueError as error:
        return Need(what, str(error), make)
    shown = " + ".join(str(len(split)) for split in corpus.splits.values()) + " clips"
    if corpus.generated and not study.smoke:  # somebody prepared a rehearsal's files by hand
        return Need(what, f"{shown}, generated", f"rm -r {_short(folder)}; {make}")
    return Need(what, shown + (", generated" if corpus.generated else ""))


def _model(study: Study, name: str, kind: str) -> Need:
    """An LLM or a text encoder."""
    what = f"{kind} {Path(name).name if Path(name).is_dir() else name}"
    try:
        folder = llm_files.locate(name)
    except (FileNotFoundError, ValueError) as error:
        if study.smoke and not study.own_llm:
            return Need(what, "not made yet", f"{COMMAND} rehearse")
        if Path(name).exists():
            return Need(what, str(error), "restore or fetch what is named here")
        return Need(what, "not on this machine", f"{COMMAND} weights {shlex.quote(name)}")
    size = sum(path.stat().st_size for path in llm_files.weight_files(folder)) / 1e9
    return Need(what, f"{size:.1f} GB of weights in {_short(folder)}")


def screen(study: Study, found: Sequence[Need]) -> str:
    """The list as text, missing things with their commands."""
    width = max((len(need.what) for need in found), default=0)
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    lines = [f"profile {study.profile}, {seeds}{', rehearsal' if study.smoke else ''}"]
    for need in found:
        lines.append(f"  {need.state if need.remedy else 'ok':8}{need.what:{width}}  {need.found}")
        if need.remedy:
            lines.append(f"  {'':8}{'':{width}}  -> {need.remedy}")
    return "\n".join(lines)


def planned_screen(study: Study, notebooks: Collection[str]) -> str:
    """The runs that these notebooks need, known before their corpora and LLMs are here: a line a row, and the number of all.

    Each line is corpus, row, and the row's seeds on that corpus.
    """
    planned = study.planned(notebooks)
    seeds: dict[tuple[str, str], list[int]] = {}
    for one in planned:
        corpus = study.data or study.settings.corpora[one.key]
        seeds.setdefault((corpus, naming.label(one.row)), []).append(one.seed)
    rows = [[corpus, row, str(len(found)), ", ".join(map(str, found))] for (corpus, row), found in seeds.items()]
    lines = table(["corpus", "row", "runs", "seeds"], rows, [2]) if rows else []
    return "\n".join([*("  " + line for line in lines), f"{len(planned)} runs in all"])


def _gpu(wanted: int) -> Need:
    what = f"GPU, {wanted} GB"
    remedy = f"use a machine with an NVIDIA GPU; without one: make reproduce (embedded default), or {COMMAND} rehearse"
    if (gpu := sharing.first_gpu()) is None:
        return Need(what, "no NVIDIA GPU or driver found (nvidia-smi)", remedy)
    name, size = gpu
    shown = f"{name}, {size:.0f} GB"
    if "+cpu" in version("torch"):
        return Need(what, f"{shown}, but torch {version('torch')} is a CPU build", "make clean && make setup")
    return Need(what, shown, "" if size >= wanted else remedy)


def _memory(wanted: int) -> Need:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    need = Need(f"memory, {wanted} GB", f"{size:.0f} GB")
    return need if size >= wanted else Need(need.what, need.found, "use a machine with more memory")


def _disk(study: Study, wanted: float) -> Need:
    """Room for what is still to be fetched, converted and trained; the hub's cache may lie on another disk."""
    place = next(folder for folder in (study.root, *study.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    what, shown = f"disk, {wanted:.0f} GB", f"{free:.0f} GB free at {_short(study.root)}"
    if free >= wanted:
        return Need(what, shown)
    return Need(what, shown, "make room there, or name another folder in the environment variable CMPTA_RUNS")


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if home != "/" and str(path).startswith(home + os.sep) else str(path)
