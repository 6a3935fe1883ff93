"""The tables and captions of the notebooks, put together from corpora and run records, and the report that gathers them.

Functions return plain tables; `save_table` and `footer` add the line that says where they come from. Single clips are
the matter of `clips`, parameter counts that of `sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cmpta_lib import files, metrics, paper
from cmpta_lib.data.corpus import SPLITS
from cmpta_lib.methods.prompts import Layout
from cmpta_lib.metrics import TaskKind
from cmpta_lib.report import uncertainty
from cmpta_lib.report.export import NOTHING, PROVENANCE, Provenance, export_table, record, recorded
from cmpta_lib.report.tables import ResultRow
from cmpta_lib.runs.store import Run
from cmpta_lib.study.plan import REGISTER, VARIANTS
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

PAPER_NAMES: Mapping[str, str] = {"sims": "SIMS-V2", "meld": "MELD"}
LANGUAGES: Mapping[str, str] = {"zh": "Chinese", "en": "English"}
METRICS: Mapping[TaskKind, tuple[uncertainty.Metric, ...]] = {
    "regression": ("mae", "corr"),
    "classification": ("f1_weighted",),
}
# Sections of the report and the files in each, as patterns of exported names.
REPORT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("The corpora (Table 1)", ("table1.md", "corpus_*.png")),
    ("The method (Figures 1 and 2, Table 2)", ("fig[12]_*.png", "table2.md", "table2_parameters.md")),
    ("Comparison (Tables 3 and 4)", ("table3.md", "table4.md", "paired_*.md")),
    ("Ablations (Tables 5 and 6)", ("table5.md", "table6.md", "ablation_*.png")),
    ("Attention (Figures 3 and 4)", ("fig[34]_*.png", "attention_on_cues.md")),
    ("A case (Figure 5)", ("fig5_*.png",)),
    ("Training and open choices", ("training.md", "training_curves_*.png", "register.md")),
)


def footer(provenance: Provenance) -> str:
    """The small print of a figure: the warning where data are generated, then where everything comes from."""
    return " ".join(filter(None, [provenance.warning(), provenance.line()]))


def drawing_footer(study: Study) -> str:
    """The small print of a diagram, which no data enter."""
    smoke = ", SMOKE RUN" if study.smoke else ""
    return f"Drawn by code, no data enter; profile: {study.provenance(()).profile}{smoke}."


def save_table(
    study: Study, frame: pd.DataFrame, name: str, caption: str, keys: Sequence[str], runs: Sequence[Run] = ()
) -> Styler:
    """Export a table beside the study's figures, and return it for a notebook to show uncut."""
    provenance = study.provenance(keys, runs)
    export_table(frame, study.figures, name, caption=caption, provenance=provenance)
    record(study.figures, name, provenance)
    return frame.style.hide(axis="index").set_caption(caption)


def save_figure(study: Study, figure: Figure, name: str, keys: Sequence[str] = (), runs: Sequence[Run] = ()) -> None:
    """Export a figure beside the study's tables, and write down what made it; a drawing has neither keys nor runs."""
    from cmpta_lib.figures import style  # not above: tables need no matplotlib

    style.save_figure(figure, study.figures, name)
    record(study.figures, name, study.provenance(keys, runs))


def described(study: Study, key: str) -> str:
    """A corpus as captions name it."""
    corpus = study.corpus(key)
    return f"{corpus.name} (generated, in place of {PAPER_NAMES[key]})" if corpus.generated else corpus.name


def table_runs(study: Study, key: str, variants: Sequence[str] = tuple(VARIANTS)) -> list[Run]:
    """The runs behind a table, so that one call of `ensure` can train them side by side."""
    return [run for name in variants for run in study.runs(key, VARIANTS[name])]


def seeds_of(study: Study) -> str:
    """How many seeds, for a caption."""
    return f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"


def scores_caption(study: Study, key: str, what: str) -> str:
    """Caption of a table of scores: what it compares, on which clips, and what its numbers are."""
    over = f"mean ± sample sd over {seeds_of(study)}" if len(study.seeds) > 1 else f"seed {study.seeds[0]}"
    return f"{what} on {described(study, key)}, test split: {over}, 95 % bootstrap interval over test clips."


def table1(study: Study) -> pd.DataFrame:
    """Clips per split and language, the paper's line above this run's."""
    rows = []
    for key in study.keys:
        corpus = study.corpus(key)
        if study.is_paper_corpus(key):
            printed = vars(paper.TABLE1[PAPER_NAMES[key]])
            rows.append({"dataset": PAPER_NAMES[key], "source": "paper"} | printed)
        sizes = {name: len(corpus.splits[name]) for name in SPLITS}
        sizes |= {"total": sum(sizes.values()), "language": LANGUAGES[corpus.task.language]}
        rows.append({"dataset": corpus.name, "source": "this run"} | sizes)
    return pd.DataFrame(rows)


def best_possible(study: Study, keys: Sequence[str]) -> pd.DataFrame:
    """Bayes-optimal test scores of generated corpora by what is known, per cent for F1; empty for real data."""
    rows = []
    for key in keys:
        for metric in METRICS[study.corpus(key).task.kind]:
            if scores := study.bayes(key, metric):
                names = {"text": "text", "face_voice": "face and voice", "all": "all three"}
                shown = {names[known]: show_score(metric, score) for known, score in scores.items()}
                rows.append({"corpus": study.corpus(key).name, "metric": metric} | shown)
    return pd.DataFrame(rows)


def show_score(metric: str, value: float) -> str:
    """A score as the paper prints it: three decimals, or per cent with two; a dash where it is not defined."""
    if not np.isfinite(value):
        return NOTHING
    return f"{100 * value:.2f} %" if metric == "f1_weighted" else f"{value:.3f}"


def bayes_of(study: Study, key: str, names: Sequence[str]) -> dict[str, float]:
    """Metric -> best score from all that a clip holds; empty for real data."""
    return {name: scores["all"] for name in names if (scores := study.bayes(key, name))}


def findings(study: Study) -> pd.DataFrame:
    """What the corpora hold and what in them is odd: counts, absent modalities, duplicates, leaks, repairs."""
    from data_prep import verify

    return pd.concat([verify.findings(corpus).assign(corpus=corpus.name) for corpus in map(study.corpus, study.keys)])[
        ["corpus", "check", "split", "count", "examples"]
    ].reset_index(drop=True)


def table2(study: Study) -> pd.DataFrame:
    """Hyperparameters and prompts, as printed and as used."""
    printed, rows = paper.HYPERPARAMETERS, []
    prompts = {"sims": paper.SIMS_PROMPT_AS_PRINTED, "meld": paper.MELD_PROMPT}
    for key in study.keys:
        config, corpus = study.config(key), study.corpus(key)
        layout = Layout.of(corpus.task)
        lines = {
            "feature dimension D": (printed.feature_dim, config.adapter.dim),
            "optimizer": (printed.optimizer, printed.optimizer),
            "learning rate": (f"{printed.learning_rate:g}", f"{config.training.learning_rate:g}"),
            "epochs": (printed.epochs, config.training.epochs),
            "batch size": (printed.batch_size, config.training.batch_size),
            "prompt": (prompts.get(key), layout.prompt),
            "tags around tokens and text": (None, f"{layout.open} … {layout.close}"),
        }
        for setting, (theirs, ours) in lines.items():
            theirs = theirs if study.is_paper_corpus(key) else None
            rows.append([corpus.name, setting, NOTHING if theirs is None else str(theirs), str(ours)])
    return pd.DataFrame(rows, columns=["corpus", "setting", "paper", "this run"])


def training_table(study: Study, keys: Sequence[str]) -> pd.DataFrame:
    """One line per finished CMPTA run: scores, best epoch, seconds, oddities."""
    rows = []
    for key in keys:
        metric = metrics.headline(study.corpus(key).task.kind)[0]
        for run in study.runs(key):
            odd = [f"{name.replace('_', ' ')}: {count}" for name, count in run.metrics["oddities"].items() if count]
            row = {"corpus": study.corpus(key).name, "seed": run.config.seed, "metric": metric}
            row |= {split: show_score(metric, run.metrics[split][metric]) for split in ("valid", "test")}
            row |= {"best epoch": f"{run.metrics['best_epoch']} of {run.config.training.epochs}"}
            row |= {"seconds": f"{run.environment['train_seconds']:.0f}", "oddities": ", ".join(odd) or "none"}
            rows.append(row)
    return pd.DataFrame(rows)


def register_table(study: Study) -> pd.DataFrame:
    """The interpretation register's alternatives beside the default: one seed, test split of the first corpus."""
    key = study.keys[0]
    default = study.runs(key)[0]
    lines = [("default", default)] + [(name, runs[0]) for name, runs in study.register_runs()]
    rows = []
    for name, run in lines:
        change = ", ".join(f"{field} = {value}" for field, value in REGISTER.get(name, {}).items())
        row, scores = {"register": name, "change": change or NOTHING}, run.metrics["test"]
        for metric in METRICS[study.corpus(key).task.kind]:
            score = scores.get(metric, np.nan)  # nothing to correlate where no free reply was parsable
            gap = (100 if metric == "f1_weighted" else 1) * (score - default.metrics["test"][metric])
            row[metric] = show_score(metric, score)
            row[f"{metric} minus default"] = f"{gap:+.3f}" if run != default and np.isfinite(gap) else NOTHING
        unparsable = int(scores.get("unparsable_count", 0))
        rows.append(row | {"unparsable": unparsable, "best epoch": run.metrics["best_epoch"]})
    return pd.DataFrame(rows)


def paired_table(study: Study, key: str, rows: Sequence[ResultRow]) -> pd.DataFrame:
    """The last row, CMPTA, minus text only on the same redrawn test clips; percentage points for F1."""
    full, without = rows[-1], next(row for row in rows if row.method.startswith("text only"))
    lines = []
    for metric in METRICS[study.corpus(key).task.kind]:
        found = uncertainty.paired_bootstrap(metric, full.truth, full.predictions, without.predictions)
        scale = 100 if metric == "f1_weighted" else 1
        difference, low, high = (f"{scale * value:+.3f}" for value in (found.difference, found.low, found.high))
        line = {"metric": metric, "difference": difference, "95 % CI": f"[{low}, {high}]", "p": f"{found.p_value:.4f}"}
        lines.append({"comparison": f"{full.method} minus {without.method}"} | line)
    return pd.DataFrame(lines)


def ablation_frame(rows: Sequence[ResultRow], metric: uncertainty.Metric) -> pd.DataFrame:
    """What `plots.ablation_figure` draws, from a table's rows; fractions throughout."""
    lines = []
    for row in rows:
        mean = float(uncertainty.seed_scores(metric, row.truth, row.predictions).mean())
        low, high = uncertainty.bootstrap_interval(metric, row.truth, row.predictions)
        printed = row.paper.get(metric, np.nan) / (100 if metric == "f1_weighted" else 1)
        lines.append([row.group, row.method, mean, low, high, printed])
    return pd.DataFrame(lines, columns=["study", "variant", "mean", "low", "high", "paper"])


def made_by(folder: Path) -> str:
    """Every commit, machine and package version that the exports of a folder come from, in one paragraph."""
    items = recorded(folder).values()
    commits, machines, packages = (
        sorted({one for item in items for one in item[name]}) for name in ("commits", "hardware", "packages")
    )
    return (
        f"Made at commit {' and '.join(commits)} on {' and '.join(machines)} with {', '.join(packages)}; "
        f"which runs made which item is in [{PROVENANCE}]({PROVENANCE})."
    )


def write_report(study: Study, keys: Sequence[str]) -> Path:
    """Gather what the notebooks have exported into report.md beside it; what is missing is named, not left out.

    Args:
        keys: the corpora that are here; the report says on its face if one of them is generated.
    """
    folder = study.figures
    title = study.corpus("data").name if study.data else f"profile {study.provenance(()).profile}"
    parts = [f"# CMPTA, paper | this run: {title}{', SMOKE RUN' if study.smoke else ''}"]
    if warning := study.provenance(keys).warning():
        parts.append(f"**{warning}**")
    parts += [made_by(folder)] if recorded(folder) else []
    if not study.data:
        parts += [paper.CONTEXT, "Slips of the paper, as far as they touch its tables and figures:"]
        parts.append("\n".join(f"- {slip}" for slip in paper.ERRATA))
    for heading, patterns in REPORT:
        parts.append(f"## {heading}")
        for pattern in patterns:
            found = sorted(folder.glob(pattern))
            for path in found:
                table = path.suffix == ".md"
                parts.append(path.read_text(encoding="utf-8").strip() if table else f"![{path.stem}]({path.name})")
            if not found:
                parts.append(f"({pattern}: not made.)")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return folder / "report.md"
