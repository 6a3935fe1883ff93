"""Which runs make which table: profiles, the variants behind each row, and the study that a notebook works on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cmpta_lib import metrics, paper
from cmpta_lib.config import PAPER_SEEDS, DataConfig, LLMConfig, RunConfig, override
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.data.store import load_corpus
from cmpta_lib.llm import files as llm_files
from cmpta_lib.report.export import PUBLISHED, Provenance, figures_folder
from cmpta_lib.report.tables import ResultRow
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs.engines import ensure
from cmpta_lib.runs.store import ROOT, Run, runs_folder
from cmpta_lib.study.parameters import changes_suffix, checked_changes
from cmpta_lib.study.plan import FIRST_SEED_ONLY, NOTEBOOK_RUNS, REGISTER, VARIANTS
from cmpta_lib.study.profiles import PROFILES, REHEARSAL, SMOKE_CHANGES, SMOKE_DOCUMENTS, SMOKE_SIZES
from data_prep.public_pickles import read_public_pickles


class Study:
    """What a notebook works on: a profile's corpora and backbone, its seeds, and the runs they lead to.

    Args:
        profile: "demo" or "paper".
        seeds: how many of the five seeds (register 17), or the seeds themselves; None = the profile's number.
        data: folder of `<name>_{train,valid,test}.pkl` in MELD's public format; replaces the profile's corpora.
        smoke: a few clips, one epoch and a barely trained LLM, to see that everything runs; says so in its outputs. For
            profile "paper" that is its rehearsal, on the files that `cmpta rehearse` wrote.
        llm: another backbone than the profile's: a name of `llm_files.PUBLISHED`, a hub id, or a folder.
        changes: config fields to change in every run, such as {"training.epochs": 3}; outputs say so.
    """

    def __init__(
        self,
        profile: str = "demo",
        seeds: int | Sequence[int] | None = None,
        data: str = "",
        smoke: bool = False,
        llm: str = "",
        changes: Mapping[str, Any] | str | None = None,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f"no profile '{profile}'; there are: {', '.join(PROFILES)}")
        self.profile, self.settings, self.smoke, self.data = profile, PROFILES[profile], smoke, str(data)
        self.own_llm, self.changes = str(llm), checked_changes(changes)
        self.seeds = _seeds(self.settings.num_seeds if seeds is None else seeds)
        if smoke:
            self.seeds = self.seeds[:1]
        self.root = runs_folder() / "smoke" if smoke else runs_folder()
        self.keys: tuple[str, ...] = ("data",) if self.data else tuple(self.settings.corpora)
        self._corpora: dict[str, Corpus] = {}

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def figures(self) -> Path:
        """Where this study's figures and tables go: figures/<profile or corpus>/; smoke output stays out of it."""
        name = self.corpus("data").name if self.data else self.profile
        name = f"{name}-data" if self.data and name in (*PROFILES, PUBLISHED) else name
        if self.own_llm:  # two folders of one name are told apart by their contents
            folder = Path(self.own_llm)
            name += f"-{folder.name}" + (f"-{self.llm.fingerprint[:6]}" if folder.is_dir() else "")
        name += changes_suffix(self.changes)
        return self.root / "figures" / name if self.smoke else figures_folder() / name

    def key(self, wanted: str) -> str:
        """The corpus that a notebook about `wanted` ("sims" or "meld") works on: the user's own where one is given."""
        return "data" if self.data else wanted

    def corpus(self, key: str) -> Corpus:
        """The corpus behind a key, made or converted first where it must be."""
        if key not in self._corpora:
            self._corpora[key] = self._open(key)
        return self._corpora[key]

    def _open(self, key: str) -> Corpus:
        from cmpta_lib.embedded import synthetic

        cache = self.cache / "data"
        if key == "data":
            return read_public_pickles(Path(self.data), cache)
        name = self.settings.corpora[key]
        if name in synthetic.worlds():
            return synthetic.embedded_corpus(name, cache, SMOKE_SIZES if self.smoke else synthetic.SPLIT_SIZES)
        folder = cache / name
        if not (folder / "meta.json").exists():
            raise FileNotFoundError(
                f"profile '{self.profile}' needs the corpus '{name}' in {folder}, and it is not there. "
                f"Make it with: {'cmpta rehearse' if self.smoke else f'cmpta data {name}'}; or pass data=<folder> with "
                f"files in MELD's public format, or use profile 'demo', which needs no download."
            )
        return load_corpus(folder)

    def fetch(self) -> None:
        """Fetch, verify and convert the published corpora of this study that are not here yet.

        Raises:
            ValueError, OSError: as `data_prep.simsv2.prepare` and `data_prep.meld.prepare`.
        """
        from data_prep import meld, simsv2

        for key in self.keys if not (self.data or self.smoke) else ():
            for module in (simsv2, meld):
                if self.settings.corpora[key] == module.NAME:
                    module.prepare(self.cache)

    @property
    def llm_name(self) -> str:
        """What names the backbone: the caller's choice, the rehearsal's, or the profile's."""
        return self.own_llm or self._rehearsal.get("llm", self.settings.llm)

    @cached_property
    def llm(self) -> LLMConfig:
        """The backbone with its fingerprint; the tiny one is built first where it must be, in a process of its own.

        Raises:
            FileNotFoundError: it is not on this machine; says how to fetch it.
        """
        if self.llm_name != "tiny":
            return llm_files.resolve(self.llm_name, "bfloat16", self.cache / "llm")
        documents = SMOKE_DOCUMENTS if self.smoke else None
        return LLMConfig("tiny", _tiny_fingerprint(self.cache / "llm", documents))

    @cached_property
    def _rehearsal(self) -> dict[str, Any]:
        record = self.root / REHEARSAL
        return json.loads(record.read_text()) if self.smoke and self.profile == "paper" and record.exists() else {}

    def config(self, key: str, variant: Mapping[str, Any] | None = None, seed: int | None = None) -> RunConfig:
        """The full config of one run of this study."""
        corpus = self.corpus(key)
        base = RunConfig(
            data=DataConfig(corpus.name, corpus.fingerprint), llm=self.llm, seed=self.seeds[0] if seed is None else seed
        )
        changes = dict(self.settings.changes) | dict(self.settings.corpus_changes.get(key, {}))
        if self.llm.name != "tiny":
            changes["prompt.answer_sign"] = self._answer_sign
        smoke = self._rehearsal.get("changes", SMOKE_CHANGES) if self.smoke else {}
        return override(base, changes | smoke | self.changes | dict(variant or {}))

    @cached_property
    def _answer_sign(self) -> str:
        return llm_files.answer_sign(llm_files.find(self.llm, self.cache / "llm"))

    def runs(self, key: str, variant: Mapping[str, Any] | None = None) -> list[Run]:
        """One run per seed, finished or not."""
        return [self._run(key, variant, seed) for seed in self.seeds]

    def _run(self, key: str, variant: Mapping[str, Any] | None, seed: int) -> Run:
        config = self.config(key, variant, seed)
        return Run(config, self.root / f"{config.data.name}-{config.hash}")

    def ensure(self, runs: Sequence[Run], jobs: int | None = None) -> Sequence[Run]:
        """Make every run finished, several at a time, with a progress bar; returns them."""
        ensure(runs, self.root, jobs)
        return runs

    def planned(self, notebooks: Collection[str] = tuple(NOTEBOOK_RUNS)) -> list[tuple[str, str, int]]:
        """Corpus, row and seed of every run that these notebooks ask for, each once; needs no corpus."""
        found: dict[tuple[str, str, int], None] = {}
        for notebook, wanted in NOTEBOOK_RUNS.items():
            seeds = self.seeds[:1] if notebook in FIRST_SEED_ONLY else self.seeds
            for corpus, variants in wanted if notebook in notebooks else ():
                found |= dict.fromkeys((self.key(corpus), variant, seed) for variant in variants for seed in seeds)
            if notebook in notebooks and notebook == "03_training":
                found |= dict.fromkeys((self.keys[0], f"register {name}", self.seeds[0]) for name in REGISTER)
        return list(found)

    def planned_runs(self, notebooks: Collection[str] = tuple(NOTEBOOK_RUNS)) -> list[tuple[str, Run]]:
        """Every run that these notebooks ask for, each once, with the name of its row."""
        changes = dict(VARIANTS) | {f"register {name}": change for name, change in REGISTER.items()}
        return [(row, self._run(key, changes[row], seed)) for key, row, seed in self.planned(notebooks)]

    def keys_of(self, notebooks: Collection[str]) -> tuple[str, ...]:
        """The corpora that these notebooks read."""
        every = tuple(notebook for notebook in notebooks if notebook not in NOTEBOOK_RUNS)  # 01 and 02 show all
        wanted = {self.key(corpus) for name in notebooks for corpus, _ in NOTEBOOK_RUNS.get(name, ())}
        return tuple(key for key in self.keys if every or key in wanted)

    def register_runs(self) -> list[tuple[str, list[Run]]]:
        """The interpretation register's alternatives, one seed each, on the first corpus."""
        return [(name, self.runs(self.keys[0], change)[:1]) for name, change in REGISTER.items()]

    def is_paper_corpus(self, key: str) -> bool:
        """Whether the paper's numbers stand for this corpus; generated ones stand in for it and say so."""
        return key != "data"

    def row(
        self, key: str, variant: str, group: str = "", name: str = "", printed: Mapping[str, float] | None = None
    ) -> ResultRow:
        """A table row from the finished runs of a variant; free replies that were unparsable are counted in its note."""
        import numpy as np

        runs = self.ensure(self.runs(key, VARIANTS[variant]))
        tables = [run.predictions() for run in runs]
        predictions = np.stack([table["prediction"].to_numpy(float) for table in tables])
        odd = int((~np.isfinite(predictions)).sum())
        if self.corpus(key).task.kind == "classification":
            predictions = np.where(np.isfinite(predictions), predictions, metrics.UNPARSABLE).astype(int)
        note = f"{odd} unparsable replies" if odd else ""
        return ResultRow(group, name or variant, printed or {}, tables[0]["label"].to_numpy(), predictions, note)

    def comparison_rows(self, key: str) -> list[ResultRow]:
        """Table 3 or 4: the paper's methods that are not run here, text only, and CMPTA."""
        rows = []
        printed = {"sims": paper.TABLE3, "meld": paper.TABLE4}.get(key, ())
        note = f"not part of this repository yet; `cmpta reproduce --profile {self.profile}` will run it once it is"
        for line in printed[:-1]:
            rows.append(ResultRow("", f"{line.method} [{line.reference}]", line.scores, note=note))
        rows.append(self.row(key, "text only", name="text only (no pseudo tokens)"))
        return rows + [self.row(key, "CMPTA", name="CMPTA", printed=printed[-1].scores if printed else {})]

    def ablation_rows(self, key: str) -> list[ResultRow]:
        """Table 5 or 6, in the paper's order; the full method's runs serve every group's first row."""
        variant_of = {
            (paper.ALIGNMENT, "off"): "alignment off",
            (paper.LSTM_TYPE, "unidirectional"): "unidirectional",
            (paper.ADAPTER, "off"): "adapter off",
        } | {(paper.TOKEN_COUNT, str(n)): f"{n} tokens" for n in (5, 7, 8)}
        rows = []
        for line in paper.TABLE5 if key == "sims" else paper.TABLE6:
            variant = variant_of.get((line.group, line.method), "CMPTA")
            rows.append(self.row(key, variant, line.group, line.method, line.scores if key != "data" else {}))
            if (line.group, line.method) == (paper.ADAPTER, "off"):
                rows.append(self.row(key, "text only", line.group, "text only, no pseudo tokens"))
        return rows

    def bayes(self, key: str, metric: str) -> dict[str, float]:
        """Best score that any answer from {text, face_voice, all} can reach on the test split; empty for real data."""
        corpus = self.corpus(key)
        if not corpus.has_known_truth:
            return {}
        table, labels = corpus.splits["test"].table, corpus.task.labels
        scores = {}
        for known in ("text", "face_voice", "all"):
            answer = table[f"bayes_{known}"].to_numpy()
            if corpus.task.kind == "regression":
                scores[known] = metrics.regression_metrics(table["label"], answer)[metric]
            else:
                scores[known] = metrics.classification_metrics(table["label"], answer.astype(int), labels)[metric]
        return scores

    def provenance(self, keys: Sequence[str], runs: Sequence[Run] = ()) -> Provenance:
        """What made a table or figure: these corpora, and the commits, machines and packages of these runs."""
        corpora = [self.corpus(key) for key in keys]
        made = [run.environment for run in runs] or [records.environment()]
        changed = "".join(f", {name}={value}" for name, value in self.changes.items())
        return Provenance(
            data=", ".join(f"{c.name} ({c.fingerprint[:8]})" for c in corpora) + (", SMOKE RUN" if self.smoke else ""),
            backbone=f"{self.llm.name} ({self.llm.fingerprint[:8]})" if runs else "none",
            seeds=tuple(sorted({run.config.seed for run in runs})),
            commits=tuple(sorted({environment["commit"] for environment in made})),
            profile=self.profile + changed,
            generated=any(c.generated for c in corpora),
            hardware=tuple(sorted({environment["hardware"] for environment in made})),
            fingerprints={c.name: c.fingerprint for c in corpora} | ({self.llm.name: self.llm.fingerprint} if runs else {}),
            runs=tuple(sorted({run.folder.name for run in runs})),
            packages=tuple(sorted({f"{n} {v}" for made_by in made for n, v in made_by.get("packages", {}).items()})),
        )


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    wanted = f"expected how many of the {len(PAPER_SEEDS)} seeds {PAPER_SEEDS}, or a list of whole numbers in [0, 2**32)"
    if isinstance(seeds, int) and 1 <= seeds <= len(PAPER_SEEDS) and not isinstance(seeds, bool):
        return PAPER_SEEDS[:seeds]
    listed = seeds if isinstance(seeds, Sequence) and not isinstance(seeds, str) else ()
    # Every generator takes 32 bits, some no more; a bool is an int to Python and to nobody else.
    if not listed or not all(type(seed) is int and 0 <= seed < 2**32 for seed in listed):
        raise ValueError(f"seeds={seeds!r}: {wanted}")
    if len(set(listed)) < len(listed):
        raise ValueError(f"seeds={seeds!r}: a seed is repeated, which would pass for more runs than there are")
    return tuple(listed)


def _tiny_fingerprint(cache: Path, documents: int | None) -> str:
    """Fingerprint of the tiny LLM, built first if need be: by a process of its own, so that tables need no torch."""
    from cmpta_lib.embedded.tiny_llm import folder_of

    record = folder_of(cache, documents) / "cmpta.json"
    if not record.exists():
        _python(
            "-m", "cmpta_lib.embedded.tiny_llm", str(cache), *([str(documents)] if documents else []), threads=os.cpu_count() or 1
        )
    return json.loads(record.read_text())["fingerprint"]


def _python(*arguments: str, threads: int) -> None:
    command, environment = [sys.executable, *arguments], os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
