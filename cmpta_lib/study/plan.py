"""The one list of what makes what: rows of tables as methods with changed fields, and notebooks as the rows they need.

Notebooks, command line, report and tests all read it. It asks for no corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cmpta_lib import paper, registry
from cmpta_lib.config import one_of
from cmpta_lib.llm.files import OMNI_MODELS


@dataclass(frozen=True)
class Row:
    """What one line of a table measures: a method, and the fields in which it differs from that method's settings."""

    name: str
    method: str = "cmpta"
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rate: float = 1.0  # times the learning rate of its settings
    llm: str = ""  # the role of a frozen LLM of its own (`profiles.Profile.llms`); "" = the study's
    is_seeded: bool = True  # False: no draw decides its answers, and the first seed's run stands for all


# The multimodal transformer (notebook 13), pre-trained with both losses and fused by six pairs, and its versions.
MMT = Row("MM-Transformer", "multimodal_transformer")


def _version(name: str, **fields: object) -> Row:
    return replace(MMT, name=name, changes={f"method.{field}": value for field, value in fields.items()})


WITHOUT_PRETRAINING = _version("no pre-training", pretraining="none")
_MASKED, _CONTRASTIVE = _version("masked words", pretraining="mlm"), _version("contrastive", pretraining="contrastive")
PRETRAINING = (WITHOUT_PRETRAINING, _MASKED, _CONTRASTIVE, MMT)
FUSIONS = (MMT, _version("concatenation", fusion="concatenation"), _version("self-attention only", fusion="self_attention"))
MMT_TEXT_ONLY = _version("text only", modalities="text")
# Share of the training labels -> the method with its pre-training and without.
LABEL_SHARES: Mapping[float, tuple[Row, Row]] = {
    share: (_version(said := f"{share:.0%} of the labels", label_share=share),
            _version(f"{said}, no pre-training", label_share=share, pretraining="none"))
    for share in (0.1, 0.25, 0.5)
} | {1.0: (MMT, WITHOUT_PRETRAINING)}  # fmt: skip
MMT_ROWS = tuple(dict.fromkeys([MMT, *PRETRAINING, *FUSIONS, MMT_TEXT_ONLY, *sum(LABEL_SHARES.values(), ())]))

# MLLM-MAC (notebook 14) with and without each of its parts, and published omni models beside it. Chosen to be few: 10
# zero-shot answerings and 7 fine-tunings a corpus and seed, which share one perception.
ZERO_SHOT, TUNED = "zero-shot", "fine-tuned"
WHOLE = Row("MLLM-MAC", "mllm_mac")  # all modalities, knowledge and fine-tuning
_AS_WHOLE: Mapping[str, object] = {  # what `WHOLE` says by its defaults
    "sft": True, "modalities": "TAV", "knowledge": "generated", "shuffled": False, "integration": "concat", "decoding": "trie",
}  # fmt: skip


def _row(name: str, training: str, **fields: object) -> Row:
    """A version of MLLM-MAC; fields that are as in the whole are left out, so that equal runs are one run."""
    wanted = {"sft": training == TUNED} | fields
    changes = {f"method.{field}": value for field, value in wanted.items() if value != _AS_WHOLE[field]}
    return Row(f"{name}, {training}", WHOLE.method, changes) if changes else WHOLE


# By training and by what is given; without knowledge. Words alone, zero-shot, are the frozen LLM as it is: text only.
GIVEN: Mapping[str, Mapping[str, Row]] = {
    ZERO_SHOT: {given: _row(given, ZERO_SHOT, modalities=given, knowledge="none") for given in ("TA", "TV", "TAV")},
    TUNED: {given: _row(given, TUNED, modalities=given, knowledge="none") for given in ("T", "TA", "TV", "TAV")},
}
NOTHING_TOLD, FROM_FRAMES, SAID, SUREST = "none", "from frames, by rule", "said by the model", "said, surest answer"
OF_ANOTHER, CUE, CUE_OF_ANOTHER = "of another clip", "the cue itself", "another clip's cue"
_KNOWLEDGE: Mapping[str, Mapping[str, object]] = {
    FROM_FRAMES: {"knowledge": "features"},
    SAID: {"knowledge": "generated"},
    SUREST: {"knowledge": "generated", "integration": "max_conf"},
    OF_ANOTHER: {"knowledge": "generated", "shuffled": True},  # by rule too: of frames it is the same statement
    CUE: {"knowledge": "cue"},
    CUE_OF_ANOTHER: {"knowledge": "cue", "shuffled": True},
}
# By training and by the statement that stands before the words; with all modalities.
TOLD: Mapping[str, Mapping[str, Row]] = {
    training: {NOTHING_TOLD: GIVEN[training]["TAV"]}
    | {told: _row(f"statement: {told}", training, **_KNOWLEDGE[told]) for told in known}
    for training, known in ((ZERO_SHOT, _KNOWLEDGE), (TUNED, (SAID, OF_ANOTHER, CUE)))
}
SHUFFLED: Mapping[str, str] = {FROM_FRAMES: OF_ANOTHER, SAID: OF_ANOTHER, CUE: CUE_OF_ANOTHER}  # the control of each
FREE = _row("free replies", ZERO_SHOT, knowledge="none", decoding="free")
OMNI = [Row(name.rpartition("/")[2], "omni", {"method.model.name": name}, is_seeded=False) for name in OMNI_MODELS]
MLLM_ROWS: tuple[Row, ...] = (
    *GIVEN[ZERO_SHOT].values(), FREE, *GIVEN[TUNED].values(),
    *(row for rows in TOLD.values() for told, row in rows.items() if told != NOTHING_TOLD and row != WHOLE),
    *OMNI,
)  # fmt: skip

CMPTA = Row("CMPTA")
TEXT_ONLY = Row("text only", "text_only")
MSE_LLAMA = Row("MSE-LLaMA2-7B", "mse_adapter", llm="llama2-7b")  # a line of Table 3
ABLATIONS: Mapping[tuple[str, str], Row] = {  # the lines of Tables 5 and 6 that are not the full method
    (paper.ALIGNMENT, "off"): Row("alignment off", changes={"method.alignment": "linear"}),
    (paper.LSTM_TYPE, "unidirectional"): Row("unidirectional", changes={"method.alignment": "lstm"}),
    (paper.ADAPTER, "off"): Row("adapter off", changes={"method.fusion": "pooled"}),
    **{(paper.TOKEN_COUNT, str(n)): Row(f"{n} tokens", changes={"method.num_pseudo_tokens": n}) for n in (5, 7, 8)},
}
# Alternatives to the choices that the paper leaves open (README.md beside this package), by the numbers of these choices.
CHOICES: tuple[Row, ...] = (
    Row("3: one head", changes={"method.num_heads": 1}),
    Row("3: four heads", changes={"method.num_heads": 4}),
    Row("3: sixteen heads", changes={"method.num_heads": 16}),
    Row("4: projections per pair", changes={"method.projections": "per_pair"}),
    Row("6: maximum instead of mean", changes={"method.summary": "max"}),
    Row("7: pairs repeated, 8 tokens", changes={"method.num_pseudo_tokens": 8, "method.token_count_rule": "repeat"}),
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

    Methods that it does not print follow, then the reference lines, and CMPTA last.
    """
    order = [line.method for line in printed(key)]
    known = [entry for name, entry in registry.ENTRIES.items() if name not in (CMPTA.method, TEXT_ONLY.method)]
    entries = [entry for entry in known if key in entry.comparisons or (key == "data" and entry.comparisons)]
    rows = [(entry.is_reference, Row(entry.row, entry.name)) for entry in entries]
    if MSE_LLAMA.name in order:
        rows.append((False, MSE_LLAMA))
    rows.sort(key=lambda one: (one[0], order.index(one[1].name) if one[1].name in order else len(order)))
    return [*(row for _, row in rows), TEXT_ONLY, CMPTA]


def compared(key: str, beyond: bool = False) -> list[Row]:
    """The comparison's rows that the paper's reproduction runs; or those `beyond` it, which are run with everything only."""
    return [row for row in comparison(key) if registry.ENTRIES[row.method].is_beyond == beyond]


added = partial(compared, beyond=True)
WITHOUT_MODALITIES = (TEXT_ONLY.method, "soft_prompt")  # what pseudo tokens must beat to carry face and voice


def method_row(key: str, method: str) -> Row:
    """The comparison's row that is this method as it is, with the study's LLM."""
    return next(row for row in comparison(key) if row.method == method and not row.llm)


# Versions of the compared methods that show what a part of each is worth.
_TEXT, _NO_CONTEXT = {"method.modalities": "text"}, {"method.context": False}
MSE_ABLATIONS: tuple[Row, ...] = (
    Row("without text-guided mixer", "mse_adapter", {"method.mixer": False}),
    Row("without multi-scale fusion", "mse_adapter", {"method.multi_scale": False}),
    Row("text only", "mse_adapter", _TEXT),
    Row("without vision", "mse_adapter", {"method.modalities": "audio"}),
    Row("without audio", "mse_adapter", {"method.modalities": "vision"}),
)


def versions(key: str) -> list[Row]:
    """The compared methods from words alone, and those that read dialogues, from one utterance at a time."""
    methods = {row.method for row in compared(key)}
    fields = {name: entry.config.model_fields for name, entry in registry.ENTRIES.items() if name in methods}
    found = [Row("text only", name, _TEXT) for name in fields if "modalities" in fields[name] and name != "mse_adapter"]
    return found + [Row("without context", name, _NO_CONTEXT) for name in fields if "context" in fields[name]]


RATES = (0.3, 1.0, 3.0)  # the search that every trained method gets: times the learning rate of its settings


def trained(key: str) -> list[Row]:
    """The comparison's rows that have something to train by gradient, but for those with notebooks of their own."""
    return [row for row in compared(key) if registry.ENTRIES[row.method].is_trained]


def search(row: Row) -> dict[float, Row]:
    """Factor of the learning rate -> the row at that rate; at 1 it is the row of the comparison itself."""
    return {factor: row if factor == 1 else replace(row, rate=factor) for factor in RATES}


def label(row: Row) -> str:
    """A row's name where it stands among all runs: a version says of which method it is one, a searched rate which."""
    is_version = row.changes and not row.llm and row.method != "cmpta" and row.method in registry.ENTRIES
    name = f"{registry.ENTRIES[row.method].row}, {row.name}" if is_version else row.name
    return name if row.rate == 1 else f"{name}, learning rate × {row.rate:g}"


def every_row(key: str, method: str) -> list[Row]:
    """Every row that a run of this method may be on this corpus: with an LLM of its own first, then plain, then changed."""
    comparisons = sorted(comparison(key), key=lambda row: not row.llm)
    changed = [*ABLATIONS.values(), *CHOICES, *MSE_ABLATIONS, *versions(key), *MMT_ROWS[1:], *MLLM_ROWS]
    own = [row for row in comparisons if row.method == method] or [Row(registry.ENTRIES[method].row, method)]
    searched = [one for row in own for one in search(row).values() if one.rate != 1]
    return [*own, *(row for row in changed if row.method == method), *searched]


def ablation(key: str) -> list[Row]:
    """The rows of Table 5 or 6."""
    return [CMPTA, TEXT_ONLY, *ABLATIONS.values()]


@dataclass(frozen=True)
class Notebook:
    """One numbered notebook: the runs that it needs and the files that it leaves."""

    name: str
    section: str  # of the report
    corpora: tuple[str, ...] = ("sims", "meld")  # keys of those that it reads
    rows: Callable[[str], Sequence[Row]] = lambda key: ()  # what it needs on each of them
    tables: tuple[str, ...] = ()  # names of what it exports; {key} stands for each of its corpora
    figures: tuple[str, ...] = ()
    first_seed_only: bool = False
    has_choices: bool = False  # also the alternatives to open choices: first corpus, first seed
    has_search: bool = False  # also other learning rates of everything that is trained: first seed
    is_beyond: bool = False  # beyond the paper: runs only where it is asked for by name, or with everything
    by_name: bool = False  # not even with everything: it needs an extra


_BESIDE = ("paired_{key}", "methods_{key}", "field_{key}")
_COMPARISON, _ABLATION, _BEYOND = "Comparison (Tables 3 and 4)", "Ablations (Tables 5 and 6)", "Beyond the paper: "

NOTEBOOKS: tuple[Notebook, ...] = (
    Notebook("01_data", "The corpora (Table 1)", tables=("table1", "findings"), figures=("corpus_{key}",)),
    Notebook(
        "02_model", "The method (Figures 1 and 2, Table 2)", tables=("table2", "table2_parameters"),
        figures=("fig1_architecture", "fig2_adapter"),
    ),
    Notebook(
        "03_training", "Training and open choices", rows=lambda key: [CMPTA],
        tables=("training", "register"), figures=("training_curves_{key}",), has_choices=True,
    ),
    Notebook("04_table3_simsv2", _COMPARISON, ("sims",), compared, ("table3", *_BESIDE), ("scores_{key}",)),
    Notebook("05_table4_meld", _COMPARISON, ("meld",), compared, ("table4", *_BESIDE), ("scores_{key}", "confusion_{key}")),
    Notebook("06_table5_ablation_simsv2", _ABLATION, ("sims",), ablation, ("table5",), ("ablation_{key}",)),
    Notebook("07_table6_ablation_meld", _ABLATION, ("meld",), ablation, ("table6",), ("ablation_{key}",)),
    Notebook(
        "08_attention_figs3_4", "Attention (Figures 3 and 4)", rows=lambda key: [CMPTA],
        tables=("attention_on_cues", "attention_heads"), figures=("fig[34]_attention_{key}",), first_seed_only=True,
    ),
    Notebook(
        "09_case_study_fig5", "A case (Figure 5)", ("meld",), lambda key: [CMPTA, TEXT_ONLY],
        figures=("fig5_case_study",), first_seed_only=True,
    ),
    Notebook(
        "10_claims", "Which of the paper's claims hold here?",
        rows=lambda key: [*compared(key), *ABLATIONS.values()],  # as Tables 3-6 need them: no run of its own
        tables=("claims_summary", "claims_rules", "claims"),
    ),
    Notebook(
        "11_errors", "Errors, and how sure the method is", rows=lambda key: [CMPTA, TEXT_ONLY],
        tables=("per_label_{key}", "sides_{key}", "calibration_{key}", "errors_{key}"),
        figures=("answers_{key}", "reliability_{key}", "error_clip_{key}"),
    ),
    Notebook(
        "12_baselines", _BEYOND + "the compared methods, taken apart",
        rows=lambda key: [*trained(key), *added(key), *versions(key), *MSE_ABLATIONS],
        tables=("mse_ablation", "versions", "search"), figures=("parts_{key}",), has_search=True, is_beyond=True,
    ),
    Notebook(
        "13_multimodal_transformer", _BEYOND + "the multimodal transformer", rows=lambda key: MMT_ROWS, is_beyond=True,
        tables=("mmt_pretraining", "mmt_fusion", "mmt_labels", "mmt_modalities"), figures=("label_shares_{key}",),
    ),
    Notebook(
        "14_mllm_mac", _BEYOND + "multimodal LLMs (MLLM-MAC)", rows=lambda key: [TEXT_ONLY, *MLLM_ROWS, WHOLE], is_beyond=True,
        tables=("mllm_zero_shot", "mllm_two_by_two", "mllm_margins", "mllm_modalities", "mllm_knowledge", "mllm_costs"),
        figures=("mllm_two_by_two_{key}", "mllm_margins_{key}"),
    ),
    Notebook("15_recordings", _BEYOND + "recordings", (), tables=("recordings",), figures=("recordings",),
             is_beyond=True, by_name=True),
    Notebook("20_performance", _BEYOND + "what it costs", (), is_beyond=True),  # seconds are no export: pages show them
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One run that is asked for."""

    key: str
    row: Row
    seed: int

    @property
    def kind(self) -> tuple[str, str, str]:
        """Corpus, method and role of a row's own LLM: runs of one kind take alike, versions of a method among them."""
        return self.key, self.row.method, self.row.llm


def chosen(names: Collection[str]) -> list[Notebook]:
    """The notebooks of these names; none means all that reproduce the paper. Raises ValueError where one has no notebook."""
    for name in names:
        one_of("notebook", name, [notebook.name for notebook in NOTEBOOKS])
    return [notebook for notebook in NOTEBOOKS if (notebook.name in names if names else not notebook.is_beyond)]


def rank(row: Row) -> int:
    """When a row's run is made among those of one seed, the smaller the sooner.

    CMPTA; what the paper prints beside it, and words without face and voice; its ablations; the comparison's other lines;
    versions, learning rates and open choices.
    """
    if row.changes or row.rate != 1:
        return 2 if row in ABLATIONS.values() else 4
    if row.method == CMPTA.method:
        return 0
    is_printed = row.name in [line.method for line in (*paper.TABLE3, *paper.TABLE4)]
    return 1 if is_printed or row.method in WITHOUT_MODALITIES else 3


def planned(notebooks: Sequence[Notebook], keys: Sequence[str], own: bool, seeds: Sequence[int]) -> list[Planned]:
    """Every run that these notebooks need, each once, in the order in which they are made.

    Seed after seed, so that all tables can be shown from the first seed, and further seeds add to what is there; of one
    seed by `rank`, and what is equal there as the notebooks name it.

    Args:
        keys: of the corpora at hand.
        own: there is one corpus, the user's, and it stands in for whichever a notebook is about.
    """
    found: list[Planned] = []
    for notebook in notebooks:
        for key in dict.fromkeys(keys[0] if own else corpus for corpus in notebook.corpora):
            for row in notebook.rows(key):
                is_once = notebook.first_seed_only or not row.is_seeded
                found += [Planned(key, row, seed) for seed in (seeds[:1] if is_once else seeds)]
            if notebook.has_search:
                found += [Planned(key, one, seeds[0]) for row in trained(key) for one in search(row).values()]
        if notebook.has_choices:
            found += [Planned(keys[0], row, seeds[0]) for row in CHOICES]
    return sorted(dict.fromkeys(found), key=lambda one: (list(seeds).index(one.seed), rank(one.row)))
