"""The one list of what makes what: rows of tables as methods with changed fields, and notebooks as the rows they need.

Notebooks, command line, report and tests all read it. Imports no torch and asks for no corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmpta_lib import paper
from cmpta_lib.methods import registry


@dataclass(frozen=True)
class Row:
    """What one line of a table measures: a method, and the fields in which it differs from that method's settings.

    `llm`: the role of a frozen LLM of its own (`profiles.Profile.llms`); "" = the study's.
    """

    name: str
    method: str = "cmpta"
    changes: Mapping[str, Any] = field(default_factory=dict)
    llm: str = ""


CMPTA = Row("CMPTA")
TEXT_ONLY = Row("text only", "text_only")
MSE_LLAMA = Row("MSE-LLaMA2-7B", "mse_adapter", llm="llama2-7b")  # a line of Table 3
ABLATIONS: Mapping[tuple[str, str], Row] = {  # the lines of Tables 5 and 6 that are not the full method
    (paper.ALIGNMENT, "off"): Row("alignment off", changes={"method.alignment": "linear"}),
    (paper.LSTM_TYPE, "unidirectional"): Row("unidirectional", changes={"method.alignment": "lstm"}),
    (paper.ADAPTER, "off"): Row("adapter off", changes={"method.fusion": "pooled"}),
    **{(paper.TOKEN_COUNT, str(n)): Row(f"{n} tokens", changes={"method.num_pseudo_tokens": n}) for n in (5, 7, 8)},
}
# The alternatives of the README's interpretation register, by its row numbers.
REGISTER: tuple[Row, ...] = (
    Row("3: one head", changes={"method.num_heads": 1}),
    Row("3: four heads", changes={"method.num_heads": 4}),
    Row("3: sixteen heads", changes={"method.num_heads": 16}),
    Row("4: projections per pair", changes={"method.projections": "per_pair"}),
    Row("6: maximum instead of mean", changes={"method.summary": "max"}),
    Row(
        "7: pairs repeated, 8 tokens",
        changes={"method.num_pseudo_tokens": 8, "method.token_count_rule": "repeat"},
    ),
    Row("8: tokens at default scale", changes={"method.token_scale": "default"}),
    Row("9: tokens after the text", changes={"method.prompt.pseudo_token_position": "after_text"}),
    Row("11: free decoding", changes={"method.decoding": "free"}),
    Row("15: no dropout", changes={"method.dropout": 0.0}),
    Row("16: raw features", changes={"data.feature_scaling": "none"}),
)


def printed(key: str) -> Sequence[paper.PaperRow]:
    """The lines that the paper's comparison on this corpus prints; none for a user's own."""
    return {"sims": paper.TABLE3, "meld": paper.TABLE4}.get(key, ())


def comparison(key: str) -> list[Row]:
    """The rows of Table 3 or 4 that can be run: registered methods, in the paper's order where it prints them.

    Table 3 has one of them a second time, with another LLM.

    Those that it does not print follow, then text only, and CMPTA last.
    """
    order = [line.method for line in printed(key)]
    others = [
        Row(entry.row, entry.name)
        for entry in registry.ENTRIES.values()
        if entry.name not in (CMPTA.method, TEXT_ONLY.method) and (key in entry.comparisons or key == "data")
    ]
    if MSE_LLAMA.name in order:
        others.append(MSE_LLAMA)
    others.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    return [*others, TEXT_ONLY, CMPTA]


def ablation(key: str) -> list[Row]:
    """The rows of Table 5 or 6."""
    return [CMPTA, TEXT_ONLY, *ABLATIONS.values()]


def _cmpta(key: str) -> list[Row]:
    return [CMPTA]


def _both(key: str) -> list[Row]:
    return [CMPTA, TEXT_ONLY]


@dataclass(frozen=True)
class Notebook:
    """One numbered notebook: the runs that it needs and the files that it leaves.

    `corpora`: keys of the corpora that it reads. `rows`: what it needs on each of them. `tables` and `figures`: names
    of what it exports, where {key} stands for each of its corpora.
    """

    name: str
    section: str  # of the report
    corpora: tuple[str, ...] = ("sims", "meld")
    rows: Callable[[str], Sequence[Row]] = lambda key: ()
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    first_seed_only: bool = False
    has_register: bool = False  # also the register's alternatives: first corpus, first seed


_COMPARISON, _ABLATION = "Comparison (Tables 3 and 4)", "Ablations (Tables 5 and 6)"
NOTEBOOKS: tuple[Notebook, ...] = (
    Notebook("01_data", "The corpora (Table 1)", tables=("table1",), figures=("corpus_{key}",)),
    Notebook(
        "02_model",
        "The method (Figures 1 and 2, Table 2)",
        tables=("table2", "table2_parameters"),
        figures=("fig1_architecture", "fig2_adapter"),
    ),
    Notebook(
        "03_training",
        "Training and open choices",
        rows=_cmpta,
        tables=("training", "register"),
        figures=("training_curves_{key}",),
        has_register=True,
    ),
    Notebook("04_table3_simsv2", _COMPARISON, ("sims",), comparison, ("table3", "paired_{key}")),
    Notebook("05_table4_meld", _COMPARISON, ("meld",), comparison, ("table4", "paired_{key}")),
    Notebook("06_table5_ablation_simsv2", _ABLATION, ("sims",), ablation, ("table5",), ("ablation_{key}",)),
    Notebook("07_table6_ablation_meld", _ABLATION, ("meld",), ablation, ("table6",), ("ablation_{key}",)),
    Notebook(
        "08_attention_figs3_4",
        "Attention (Figures 3 and 4)",
        rows=_cmpta,
        tables=("attention_on_cues",),
        figures=("fig[34]_attention_{key}",),
        first_seed_only=True,
    ),
    Notebook("09_case_study_fig5", "A case (Figure 5)", ("meld",), _both, (), ("fig5_case_study",), True),
)


@dataclass(frozen=True)
class Planned:
    """One run that is asked for."""

    key: str
    row: Row
    seed: int


def chosen(names: Collection[str]) -> list[Notebook]:
    """The notebooks of these names; "" and none mean all.

    Raises:
        ValueError: a name that no notebook has.
    """
    known = {notebook.name: notebook for notebook in NOTEBOOKS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are: {', '.join(known)}")
    return [notebook for notebook in NOTEBOOKS if not names or notebook.name in names]


def planned(notebooks: Sequence[Notebook], keys: Sequence[str], own: bool, seeds: Sequence[int]) -> list[Planned]:
    """Every run that these notebooks need, each once.

    Args:
        keys: of the corpora at hand.
        own: there is one corpus, the user's, and it stands in for whichever a notebook is about.
    """
    found: list[Planned] = []
    for notebook in notebooks:
        chosen_seeds = seeds[:1] if notebook.first_seed_only else seeds
        for key in dict.fromkeys(keys[0] if own else corpus for corpus in notebook.corpora):
            found += [Planned(key, row, seed) for row in notebook.rows(key) for seed in chosen_seeds]
        if notebook.has_register:
            found += [Planned(keys[0], row, seeds[0]) for row in REGISTER]
    unique: list[Planned] = []
    for one in found:  # rows hold dicts, so no set
        if one not in unique:
            unique.append(one)
    return unique
