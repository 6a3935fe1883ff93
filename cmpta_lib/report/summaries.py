"""The smaller tables of the notebooks: corpora, settings, training runs, and the alternatives to open choices.

Also how large the adapter is, part by part, beside the LLM that stays frozen: the paper gives no number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cmpta_lib import paper
from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import SPLITS
from cmpta_lib.llm.files import QWEN_1_8B
from cmpta_lib.method.prompted import Layout
from cmpta_lib.report.rows import PAPER_NAMES, bayes, first_runs, runs_of, shown_reason, sound, tabled, unusable
from cmpta_lib.report.tables import NOT_RUN, NOTHING
from cmpta_lib.report.uncertainty import without_unit
from cmpta_lib.study.plan import CHOICES, CMPTA, Row
from cmpta_lib.study.study import Study


def qwen_parameters() -> int:
    """Weights of Qwen-1.8B from its config: untied head, bias on query, key and value only, RMS norms."""
    hidden, mlp = QWEN_1_8B["hidden"], QWEN_1_8B["mlp"]
    layer = 3 * (hidden + 1) * hidden + hidden**2 + 3 * hidden * mlp + 2 * hidden
    return 2 * QWEN_1_8B["vocabulary"] * hidden + QWEN_1_8B["layers"] * layer + hidden


def parameter_counts(config: CmptaConfig, audio_features: int, vision_features: int, llm_dim: int) -> Counter[str]:
    """Trainable parameters by part, counted on an adapter that occupies no memory."""
    import torch

    from cmpta_lib.method.adapter import CMPTAdapter

    parts = {
        "alignment.vision": "alignment of vision (eqs 3-5)",
        "alignment.audio": "alignment of audio (eqs 3-5)",
        "text_projection": "text E → D",
        "attention": "queries, keys, values (eq 7)",
        "token_mix": "mix to K tokens",
        "summary_norm": "norm of the tokens",
        "to_llm": "tokens D → E",
    }
    with torch.device("meta"):
        adapter = CMPTAdapter(config, audio_features, vision_features, llm_dim, embedding_norm=1.0)
    counts: Counter[str] = Counter()
    for name, parameter in adapter.named_parameters():
        counts[next(part for prefix, part in parts.items() if name.startswith(prefix))] += parameter.numel()
    return counts


def at_papers_size() -> dict[str, tuple[Counter[str], int]]:
    """Name of a corpus and of the sizes -> trainable parameters by part, and those of the frozen LLM, in the paper."""
    return {
        f"{name}, D 1024, Qwen-1.8B": (
            parameter_counts(CmptaConfig(), shape["audio"][1], shape["vision"][1], QWEN_1_8B["hidden"]), qwen_parameters()
        )
        for name, shape in paper.PUBLIC_SHAPES.items()
    }  # fmt: skip


def table2_parameters(study: Study) -> pd.DataFrame:
    """Trainable parameters at the paper's size and at this profile's, with their share of the frozen LLM's."""
    from cmpta_lib.runs.load import load_llm

    sizes = at_papers_size()
    for key in (one for one in study.keys if not study.missing(CMPTA, one)):
        llm = load_llm([study.cache / "llm"], study.llm)
        train, adapter = study.corpus(key).splits["train"], study.config(key).method
        assert isinstance(adapter, CmptaConfig)
        counts = parameter_counts(adapter, train.audio_dim, train.vision_dim, llm.dim)
        sizes[f"{study.corpus(key).name}, this run: D {adapter.dim}, {llm.name}"] = counts, llm.num_parameters
    columns = {}
    for name, (counts, frozen) in sizes.items():
        total = counts.total()
        sums = {"trainable in all": f"{total:,}", "frozen LLM": f"{frozen:,}", "share": f"{100 * total / frozen:.2f} %"}
        columns[name] = {part: f"{count:,}" for part, count in counts.items()} | sums
    return pd.DataFrame(columns).rename_axis("part").reset_index()


LANGUAGES: Mapping[str, str] = {"zh": "Chinese", "en": "English"}


def table1(study: Study) -> pd.DataFrame:
    """Clips per split and language, the paper's line above this run's."""
    rows: list[dict[str, object]] = []
    for key in study.keys:
        corpus = study.corpus(key)
        if study.is_paper_corpus(key):
            printed = vars(paper.TABLE1[PAPER_NAMES[key]])
            rows.append({"dataset": PAPER_NAMES[key], "source": "paper"} | printed)
        sizes = {name: len(corpus.splits[name]) for name in SPLITS}
        total = {"total": sum(sizes.values()), "language": LANGUAGES[corpus.task.language]}
        rows.append({"dataset": corpus.name, "source": "this run"} | sizes | total)
    return pd.DataFrame(rows)


_ANSWERS: Mapping[str, str] = {  # `bounds.RULES` in a table's width
    "mae": "median of each clip's exact distribution",
    "corr": "mean of each clip's exact distribution",
    "f1_weighted": "classes of the split's highest expected WF1",
}
_KNOWN: Mapping[str, str] = {
    "text": "words", "face_voice": "face and voice", "all": "all three", "context": "whole dialogue",
}  # fmt: skip


def best_possible(study: Study, keys: Sequence[str]) -> pd.DataFrame:
    """Test scores of the best answers to generated clips by what is known, and the rule behind them; empty for real data."""
    rows = []
    for key in keys:
        for metric in tabled(study, key):
            if scores := bayes(study, key, metric.name):
                shown = {_KNOWN[known]: without_unit(metric, score) for known, score in scores.items()}
                line = {"corpus": study.corpus(key).name, "metric": metric.label} | shown
                rows.append(line | {"answered with": _ANSWERS[metric.name]})
    frame, last = pd.DataFrame(rows).fillna(NOTHING), "answered with"  # only dialogues have a context
    return frame[[*frame.columns.drop(last), last]] if rows else frame


def table2(study: Study) -> pd.DataFrame:
    """Hyperparameters and prompts, as printed and as used."""
    printed, rows = paper.HYPERPARAMETERS, []
    prompts = {"sims": paper.SIMS_PROMPT_AS_PRINTED, "meld": paper.MELD_PROMPT}
    for key in study.keys:
        corpus = study.corpus(key)
        if reason := study.missing(CMPTA, key):
            rows.append([corpus.name, "every setting of CMPTA", NOTHING, f"{NOT_RUN}: {shown_reason(reason)}"])
            continue
        config, layout = study.config(key, CMPTA), Layout.of(corpus.task)
        lines: dict[str, tuple[object, object]] = {
            "feature dimension D": (printed.feature_dim, config.method.model_dump()["dim"]),
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


def histories(study: Study, key: str) -> dict[str, pd.DataFrame]:
    """What `curves.training_curves` draws: seed -> history of each CMPTA run that is finished and sound."""
    unit, found = study.corpus(key).task.unit, {str(run.config.seed): run.history for run in sound(runs_of(study, key, CMPTA))}
    return {seed: one.assign(valid_mae=one["valid_mae"] * unit) if "valid_mae" in one else one for seed, one in found.items()}


def training_table(study: Study, keys: Sequence[str]) -> pd.DataFrame:
    """One line per CMPTA run: scores, best epoch, data issues; a run that failed or is damaged says so.

    No seconds and no hardware: `cmpta runs` shows them, and an export is the same on every machine.
    """
    rows = []
    for key in keys:
        metric, runs = tabled(study, key)[0], runs_of(study, key, CMPTA)
        known: dict[str, object] = {"corpus": study.corpus(key).name, "metric": metric.label}
        if not runs:
            rows.append(known | {"valid": NOT_RUN, "note": shown_reason(study.missing(CMPTA, key))})
        for run in runs:
            row = known | {"seed": run.config.seed}
            if reason := unusable([run]):
                row |= {"valid": NOT_RUN, "note": reason}
            else:
                stored, scores = run.metrics, {split: run.scores(split) for split in ("valid", "test")}
                odd = [f"{name.replace('_', ' ')}: {count}" for name, count in stored["oddities"].items() if count]
                row |= {split: without_unit(metric, found[metric.name]) for split, found in scores.items()}
                row |= {"best epoch": f"{stored['best_epoch']} of {run.config.epochs}", "oddities": ", ".join(odd) or "none"}
            rows.append(row)
    return _table(rows, ["corpus", "seed", "metric", "valid", "test", "best epoch", "oddities"])


def register_table(study: Study) -> pd.DataFrame:
    """The alternatives to choices that the paper leaves open, beside the default: one seed, test split of the first corpus."""
    key = study.every_key[0]
    (default, _), shown, rows = first_runs(study, key, CMPTA), tabled(study, key), []
    base = default[0].scores("test") if default else {}
    for choice in (Row("default"), *CHOICES):
        change = ", ".join(f"{path} = {value}" for path, value in choice.changes.items()) or NOTHING
        (found, reason), row = first_runs(study, key, choice), {"register": choice.name, "change": change}
        if reason:
            rows.append(row | {shown[0].label: NOT_RUN, "note": reason})
            continue
        (run,), scored = found, found[0].scores("test")
        for metric in shown:
            score = scored.get(metric.name, np.nan)  # nothing to correlate where no free reply was parsable
            gap = metric.scale * (score - base.get(metric.name, np.nan)) if choice.changes else np.nan
            row[metric.label] = without_unit(metric, score)
            row[f"{metric.label} minus default"] = f"{gap:+.3f}" if np.isfinite(gap) else NOTHING
        unparsable = int(scored.get("unparsable_count", 0))
        rows.append(row | {"unparsable": unparsable, "best epoch": run.metrics["best_epoch"]})
    scores = [f"{metric.label}{what}" for metric in shown for what in ("", " minus default")]
    return _table(rows, ["register", "change", *scores, "unparsable", "best epoch"])


def _table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """These columns, dashes where nothing is known; and "note" if some row has one."""
    frame = pd.DataFrame(rows, dtype=object)  # dtype: else a run that is missing would turn counts into 1.0
    return frame.reindex(columns=[*columns, *(["note"] if "note" in frame else [])]).astype(object).fillna(NOTHING)
