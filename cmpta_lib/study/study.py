"""The study that a notebook works on: a profile's corpora and backbone, its seeds, and the runs they lead to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

from cmpta_lib import registry
from cmpta_lib.config import PAPER_SEEDS, DataConfig, EncoderConfig, LLMConfig, PromptedLMConfig, RunConfig, one_of
from cmpta_lib.data.corpus import Corpus, Language
from cmpta_lib.data.store import load_corpus
from cmpta_lib.embedded.synthetic import tiny_folder
from cmpta_lib.files import PUBLISHED, Damaged, expanded, runs_folder
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs import store
from cmpta_lib.runs.engines import Engine, Failure, RunsFailed, ensure
from cmpta_lib.runs.progress import making
from cmpta_lib.runs.store import Run
from cmpta_lib.study import exports, plan
from cmpta_lib.study.parameters import check_effect, checked_changes, checked_seeds, flag
from cmpta_lib.study.plan import CMPTA, Row, label
from cmpta_lib.study.profiles import DRY_RUN, PROFILES, SMOKE_DOCUMENTS, SMOKE_SIZES, planned_config, smoke_changes
from data_prep import tasks

_LANGUAGES: Mapping[str, Language] = {"sims": "zh", "meld": "en"}  # of the published corpora, known before they are here
# Environment variable: notebooks make no run and show what is finished. "1", or words that say what makes the others.
ONLY_FINISHED = "CMPTA_ONLY_FINISHED"
WITHOUT = "CMPTA_WITHOUT"  # environment variable: `Study.without` of a reproduction, for its notebooks


class Study:
    """What a notebook works on.

    Args:
        profile: "demo" or "paper".
        seeds: how many of the five seeds (choice 17), or the seeds themselves; None = the profile's number.
        data: folder as `data_prep.public_pickles.read_folder` takes it, of pickles or recordings, in place of the profile's.
        smoke: a few clips, one epoch and a barely trained LLM, to see that everything runs; says so in its outputs. For
            profile "paper" that is its dry run, on the synthetic files that `cmpta dry-run` wrote.
        llm: another backbone than the profile's: a name of `llm.files.PUBLISHED`, a hub id, or a folder.
        changes: config fields to set in every run that has them, `{"method.summary": "max"}`; what a row of a table is
            about stays as the row says. Outputs say so and go to a folder of their own.
        published: where nothing of one's own is there, take the runs and the LLM that come with the repository, and say so;
            a notebook opened alone does. `cmpta reproduce` and its notebooks never do.
    All may be text, as papermill hands it over: "false", "1111, 2222", "~/clips".

    Raises:
        ValueError: an unknown profile, seeds that are none, a field that no method has, or a value that does not fit it.
    """

    def __init__(
        self, profile: str = "demo", seeds: int | Sequence[int] | str | None = None, data: str | Path = "",
        smoke: bool | str = False, llm: str | Path = "", changes: Mapping[str, Any] | str | None = None,
        published: bool = False,
    ) -> None:  # fmt: skip
        self.profile = one_of("profile", profile, PROFILES)
        registry.load_plugins()
        self.settings, self.smoke = PROFILES[profile], flag("smoke", smoke)
        self.data, self.own_llm, self.published = expanded(data), expanded(llm), published and WITHOUT not in os.environ
        self.seeds = checked_seeds(self.settings.num_seeds if seeds is None else seeds)[: 1 if self.smoke else None]
        self.changes = checked_changes(changes)
        self.root = runs_folder() / "smoke" if self.smoke else runs_folder()
        self.cache = self.root / "cache"
        self.every_key: tuple[str, ...] = ("data",) if self.data else tuple(self.settings.corpora)
        # What is damaged, and why: a corpus by its key, an LLM or a text encoder by its name. All else goes on without it.
        self.without: dict[str, str] = json.loads(os.environ.get(WITHOUT, "{}"))
        self._corpora: dict[str, Corpus] = {}
        self._resolved = cache(self._resolve)  # LLMs and text encoders by name and dtype
        self._answer_sign = cache(partial(llm_files.answer_sign, cache=self.cache / "llm"))
        self.rows: Collection[Row] = ()  # the only ones that are planned; none = all that its notebooks need
        self.asked: set[Path] = set()  # the runs of `make`, and which of them failed
        self.failures: dict[Path, Failure] = {}

    @property
    def name(self) -> str:
        """What its exports are called: the profile or corpus, and in what the study differs from that as it is."""
        name = self.corpus("data").name if self.data else self.profile
        if self.data:  # the same clips read as classes and as scores have two
            name += "-data" * (name in (*PROFILES, PUBLISHED, exports.EXPLORED))
            name += exports.short_name(tasks.split_choice(self.data)[0].rstrip(":"))
        if self.own_llm:  # two folders of one name are told apart by their contents
            folder = Path(self.own_llm)
            name += f"-{folder.name}" + (f"-{self.llm.fingerprint[:6]}" if folder.is_dir() else "")
        if not self.smoke and self.seeds != PAPER_SEEDS[: self.settings.num_seeds]:
            name += exports.short_name(f"seeds={','.join(map(str, self.seeds))}")
        return name + exports.short_name(",".join(f"{field}={value}" for field, value in sorted(self.changes.items())))

    @property
    def figures(self) -> Path:
        """Where its figures and tables go; smoke output stays out of figures/."""
        return self.root / "figures" / self.name if self.smoke else exports.folder(self.name)

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of its corpora that are sound, as far as anybody has looked."""
        return tuple(key for key in self.every_key if key not in self.without)

    def key(self, wanted: str) -> str:
        """The corpus that a notebook about `wanted` ("sims" or "meld") works on: the user's own where one is given."""
        return "data" if self.data else wanted

    def corpus(self, key: str) -> Corpus:
        """The corpus behind a key, made or converted first where it must be."""
        if key not in self._corpora:
            self._corpora[key] = self._open(key)
        return self._corpora[key]

    def lost(self, row: Row, key: str) -> str:
        """Why a row can be neither made nor shown on a corpus: what it needs is damaged. "" = it can, as far as is known."""
        entry = registry.ENTRIES.get(row.method)
        needs, fields = [key], entry.config.model_fields if entry else {}
        needs += [self.llm_name_of(row)] if "llm" in fields else []
        if "encoder" in fields and key in self.keys:
            needs.append(self.encoder_name(self.corpus(key).task.language))
        return next((self.without[need] for need in needs if need in self.without), "")

    def _open(self, key: str) -> Corpus:
        from cmpta_lib.embedded import synthetic

        cache = self.cache / "data"
        if key == "data" and self.data:
            from data_prep.public_pickles import public_files, read_folder  # here alone: nothing else opens pickles

            name = public_files(tasks.said(self.data)[1])[0]
            with making(f"corpus {name}", is_new=not any(cache.glob(f"{name}-*"))):
                return read_folder(Path(self.data), cache)
        name = self.settings.corpora[one_of("corpus", key, self.settings.corpora)]
        if name in synthetic.generative_models():
            with making(f"corpus {name}", is_new=not any(cache.glob(f"{name}-*"))):
                return synthetic.embedded_corpus(name, cache, SMOKE_SIZES if self.smoke else synthetic.SPLIT_SIZES)
        folder = cache / name
        if not (folder / "meta.json").exists():
            raise FileNotFoundError(
                f"profile '{self.profile}' needs the corpus '{name}' in {folder}, and it is not there. Make it with: "
                f"{'cmpta dry-run' if self.smoke else f'cmpta data {name}'}; or pass data=<folder> with files in MELD's public "
                "format, or use profile 'demo', which needs no download."
            )
        corpus = load_corpus(folder, name=name)
        if corpus.generated and not self.smoke:  # somebody may have prepared a dry run's files by hand
            raise Damaged(f"{folder} holds generated clips, and no result may come from them; remove it, and `cmpta data {name}`")
        return corpus

    @property
    def llm_name(self) -> str:
        """What names the backbone: the caller's choice, the dry run's, or the profile's."""
        return self.own_llm or self._dry_run.get("llm", self.settings.llm)

    @cached_property
    def llm(self) -> LLMConfig:
        """The backbone with its fingerprint; the tiny one is built first where it must be, in a process of its own.

        Raises:
            FileNotFoundError: it is not on this machine; says how to fetch it.
            RuntimeError: the tiny one cannot be built; with the last lines of why.
        """
        return self._resolved(self.llm_name)

    def llm_name_of(self, row: Row) -> str:
        """What names a row's backbone; the caller's own serves every row. Raises ValueError where the profile has none for it."""
        if not row.llm or self.own_llm:
            return self.llm_name
        known = self._dry_run.get("llms", self.settings.llms)
        return str(known[one_of(f"LLM for a row of profile '{self.profile}'", row.llm, known)])

    def missing(self, row: Row, key: str = "") -> str:
        """What a row waits for, with what to do: an LLM of its own; on a corpus of this key also its clips. "" = nothing.

        This row then says "not run", and the rest goes on. So it does where what the row needs is damaged.
        """
        if self.without and (reason := self.lost(row, key)):
            return reason
        entry, name = registry.ENTRIES.get(row.method), self.llm_name_of(row)
        complete = entry.complete if entry and key else None
        planned = self._planned_config(key, row) if complete else None
        try:
            if complete and planned:
                complete(planned, self.corpus(key), self.cache, {})
            elif name != self.llm_name:
                self._resolved(name)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    def llm_names(self, notebooks: Collection[str] = ()) -> list[str]:
        """What names the backbones of what these notebooks (or all) need, the study's own first; needs no corpus."""
        return list(dict.fromkeys([self.llm_name, *(self.llm_name_of(one.row) for one in self.planned(notebooks))]))

    def encoder_names(self, notebooks: Collection[str] = ()) -> dict[Language, str]:
        """Language -> what names the text encoder, of those that these notebooks (or all) need; needs no corpus."""
        methods = {(one.key, one.row.method) for one in self.planned(notebooks)}
        keys = {key for key, method in methods if "encoder" in registry.ENTRIES[method].config.model_fields}
        return {language: self.encoder_name(language) for key, language in _LANGUAGES.items() if key in keys}

    def models(self, notebooks: Collection[str]) -> dict[str, Callable[[], object]]:
        """What opens each LLM and text encoder that these notebooks' runs need, by its name; tiny ones are built first."""
        languages = self.settings.encoders if self.data else self.encoder_names(notebooks)  # a user's own may be of either
        asked: dict[str, Callable[[], object]] = {name: partial(self._resolved, name) for name in self.llm_names(notebooks)}
        return asked | {self.encoder_name(language): partial(self.encoder, language) for language in languages}

    def _resolve(self, name: str, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> LLMConfig:
        cache, documents = self.cache / "llm", SMOKE_DOCUMENTS if self.smoke else None
        if not llm_files.is_tiny(name):
            return llm_files.resolve(name, dtype, cache)
        place = llm_files.or_published if self.published else Path
        if not (folder := place(tiny_folder(cache, documents, name))).exists():
            from cmpta_lib.embedded.tiny import build_apart

            with making(f"language model {name}") as report:
                build_apart(cache, documents, name, report)
        return LLMConfig(name=name, fingerprint=llm_files.tiny_fingerprint(folder))

    def verify(self, name: str) -> None:
        """Compare every byte of the LLM or text encoder of this name with its recorded hashes; raises as `llm`, and Damaged."""
        llm_files.find(self._resolved(name), self.cache / "llm", deep=True)

    def encoder(self, language: Language) -> EncoderConfig:
        """The text encoder of methods without an LLM; built and raised as `llm`."""
        found = self._resolved(self.encoder_name(language), "float32")
        return EncoderConfig(name=found.name, fingerprint=found.fingerprint)

    def encoder_name(self, language: Language) -> str:
        """What names the text encoder of this language."""
        return str(self._dry_run.get("encoders", self.settings.encoders)[language])

    @cached_property
    def _dry_run(self) -> dict[str, Any]:
        record = self.root / DRY_RUN
        if not (self.smoke and self.profile == "paper" and record.exists()):
            return {}
        try:
            return dict(json.loads(record.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise Damaged(f"{record} is damaged; remove it and call `cmpta dry-run` again") from None

    def config(self, key: str, row: Row = CMPTA, seed: int | None = None) -> RunConfig:
        """The full config of one run of this study.

        Raises:
            ValueError: the row's method is not registered, or the changes asked for do not fit it.
            OSError: what `missing` says, where something is missing.
        """
        planned = self._planned_config(key, row, seed)
        complete = registry.ENTRIES[row.method].complete
        return complete(planned, self.corpus(key), self.cache, self.changes | dict(row.changes)) if complete else planned

    def _planned_config(self, key: str, row: Row, seed: int | None = None) -> RunConfig:  # but for what `complete` fills in
        corpus, method, more = self.corpus(key), registry.ENTRIES.get(row.method), dict[str, Any]()
        if method and issubclass(method.config, PromptedLMConfig):
            name = self.llm_name_of(row)
            llm = self.llm if name == self.llm_name else self._resolved(name)
            more |= {f"method.llm.{name}": value for name, value in llm.model_dump().items()}
            more["method.prompt.answer_sign"] = self._answer_sign(llm)
        if method and "encoder" in method.config.model_fields:
            more |= {f"method.encoder.{name}": value for name, value in self.encoder(corpus.task.language).model_dump().items()}
        if method and self.smoke:
            more |= smoke_changes(row.method, self._dry_run)
        data = DataConfig(name=corpus.name, fingerprint=corpus.fingerprint)
        return planned_config(self.profile, key, row, data, self.seeds[0] if seed is None else seed, more | self.changes)

    def check_changes(self, asked: Collection[tuple[str, Row]]) -> None:
        """Raises ValueError where a change fits one of these rows, each with its corpus' key, not, or would change none."""
        check_effect(self.changes, {row.method for _, row in asked})
        for key, row in asked:
            more = smoke_changes(row.method, self._dry_run) if self.smoke else {}
            planned_config(self.profile, key, row, DataConfig(name="any", fingerprint=""), 0, more | self.changes)

    def runs(self, key: str, row: Row = CMPTA) -> list[Run]:
        """One run per seed, finished or not; one in all where no seed matters."""
        return [self.run(key, row, seed) for seed in (self.seeds if row.is_seeded else self.seeds[:1])]

    def run(self, key: str, row: Row, seed: int) -> Run:
        """One run, finished or not."""
        config = self.config(key, row, seed)
        own = Run(config, self.root / f"{config.data.name}-{config.hash}", label(row))
        return store.or_published(own) if self.published else own

    def ensure(self, runs: Sequence[Run], jobs: int | None = None, engine: Engine | str | None = None) -> Sequence[Run]:
        """Make every run finished, several at a time, on any of `runs.engines`, saying how far it is; returns them."""
        ensure(runs, self.root, jobs, engine=engine)
        return runs

    def needed(self, notebook: str) -> list[Run]:
        """The runs that a notebook needs, but for the alternatives to open choices and rows whose own LLM is not here."""
        chosen = [replace(found, has_choices=False) for found in plan.chosen([notebook])]
        planned = plan.planned(chosen, self.every_key, bool(self.data), self.seeds)
        return [self.run(one.key, one.row, one.seed) for one in planned if not self.missing(one.row, one.key)]

    def choice_runs(self) -> list[Run]:
        """The default and the alternatives to the choices that the paper leaves open: one seed each, on the first corpus."""
        key, rows = self.every_key[0], (CMPTA, *plan.CHOICES)
        return [self.run(key, row, self.seeds[0]) for row in rows if not self.missing(row, key)]

    def make(self, runs: Sequence[Run]) -> Sequence[Run]:
        """As `ensure`, but a run that fails is printed and remembered in `failures`: tables mark its row, others stand.

        Makes none where `ONLY_FINISHED` is set: tables are then of the seeds that are there.
        """
        if os.environ.get(ONLY_FINISHED):
            return runs
        self.asked |= {run.folder for run in runs}
        store.tell_published(runs if self.published else ())
        try:
            self.ensure(runs)
        except RunsFailed as error:
            self.failures |= {failure.run.folder: failure for failure in error.failures}
            print(error, file=sys.stderr)
        return runs

    def conclude(self) -> None:
        """For a notebook's end: say where its exports lie. They stand; raises RunsFailed where a run of `make` failed."""
        print(f"Tables and figures are in {exports.shown(self.figures)}")
        if self.failures:
            raise RunsFailed([*self.failures.values()], len(self.asked))

    def planned(self, notebooks: Collection[str] = ()) -> list[plan.Planned]:
        """Corpus, row and seed of every run that these notebooks (or all) need, each once; needs no corpus."""
        found = plan.planned(plan.chosen(notebooks), self.every_key, bool(self.data), self.seeds)
        return [one for one in found if one.row in self.rows or not self.rows]

    def is_made(self, notebooks: Collection[str]) -> bool:
        """Whether all that names these notebooks' runs lies in the cache; a user's own folder would have to be read first."""
        names = filter(llm_files.is_tiny, (*self.llm_names(notebooks), *self.encoder_names(notebooks).values()))
        wanted = [f"llm/{name}-[0-9]*/cmpta.json" for name in names]
        wanted += [f"data/{self.settings.corpora[key]}*/meta.json" for key in self.keys_of(notebooks) if not self.data]
        return not self.data and all(any(self.cache.glob(pattern)) for pattern in wanted)

    def planned_runs(self, notebooks: Collection[str] = (), keys: Collection[str] | None = None) -> list[tuple[str, Run]]:
        """Every run that these notebooks (or all) need on these corpora (or all), each once, with its row's name."""
        asked = [one for one in self.planned(notebooks) if keys is None or one.key in keys]
        return [(one.row.name, self.run(one.key, one.row, one.seed)) for one in asked if not self.missing(one.row, one.key)]

    def keys_of(self, notebooks: Collection[str]) -> tuple[str, ...]:
        """The corpora that these notebooks read."""
        wanted = {self.key(corpus) for notebook in plan.chosen(notebooks) for corpus in notebook.corpora}
        return tuple(key for key in self.keys if key in wanted)

    def is_paper_corpus(self, key: str) -> bool:
        """Whether the paper's numbers stand for this corpus; generated ones stand in for it and say so."""
        return key != "data"
