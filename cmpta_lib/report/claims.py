"""The claims table: what the paper claims, the rule that each claim is judged by, and this run's verdict.

A verdict on the paper needs the paper's corpus and its LLM. Elsewhere it is "not testable on this data", and a column of its
own says what the same rule gives here: on generated data a finding about the method on that data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cmpta_lib import paper
from cmpta_lib.data.corpus import SPLITS
from cmpta_lib.llm.files import is_tiny
from cmpta_lib.metrics import METRICS, MetricName
from cmpta_lib.paper import Claim, PaperRow
from cmpta_lib.report import judge
from cmpta_lib.report.judge import BETTER, NOT_TESTABLE, ONE_SEED, SUPPORTED, Evidence, Finding, together
from cmpta_lib.report.rows import PAPER_NAMES
from cmpta_lib.report.summaries import at_papers_size
from cmpta_lib.report.tables import NOT_RUN, NOTHING, Table
from cmpta_lib.study import plan
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.profiles import PROFILES
from cmpta_lib.study.study import Study

FEW = 0.05  # "lightweight": trained parameters beside the frozen LLM's; the paper gives no number
_DECIDES = "what decides"  # no column of the exported file: it is among the figures
VERDICT, HERE = "verdict on the paper", "same rule on this run's data"
NO_TRIAL = "nothing to compare"
SIGNS = {  # for a screen; the words stand beside them
    SUPPORTED: "🟩", judge.NOT_SUPPORTED: "🟥", judge.INSIDE_SEEDS: "🟨", judge.INSIDE_CLIPS: "🟧", NOT_TESTABLE: "⬜",
    NOT_RUN: "⬛", NO_TRIAL: "⬜",
}  # fmt: skip
# What the rules are called -> what each asks.
RULES: Mapping[str, str] = {
    "better": BETTER, "number": judge.NUMBER, "little": judge.LITTLE, "cues": judge.CUE, "sarcasm": judge.SARCASM,
    "counts": judge.COUNTS, "by construction": "holds by construction", "none": "none: ",
    "light": f"at the paper's size, trained parameters below {FEW:.0%} of the LLM's (our reading of light)",
}  # fmt: skip
_ORDER = ("abstract", "1", "3.1.2", "3.1.3", "4.1", "4.4", "4.5.1", "4.5.2", "4.5.3", "4.5.4", "4.5.5", "5")
_ABLATED: Mapping[tuple[str, str], tuple[str, str, str]] = {  # line -> section, what is claimed of it, in its words
    (paper.ALIGNMENT, "off"): ("4.5.1", "Without temporal alignment the score falls", "移除后性能显著下降"),
    (paper.LSTM_TYPE, "unidirectional"): ("4.5.1", "A bidirectional LSTM is better than a unidirectional one", ""),
    (paper.ADAPTER, "off"): ("4.5.2", "Without the cross-modal adapter the score falls", "具有重要贡献"),
    (paper.TOKEN_COUNT, "5"): ("4.5.4", "5 tokens, too few, are worse than 6", "数量过少限制了跨模态信息表达能力"),
    (paper.TOKEN_COUNT, "7"): ("4.5.4", "7 tokens are worse than 6", "6 个伪 token 时取得最优结果"),
    (paper.TOKEN_COUNT, "8"): ("4.5.4", "8 tokens are worse than 6", "6 个伪 token 时取得最优结果"),
}
_ALIGNMENT, _ADAPTER = plan.ABLATIONS[paper.ALIGNMENT, "off"], plan.ABLATIONS[paper.ADAPTER, "off"]
_ONE_WAY = plan.ABLATIONS[paper.LSTM_TYPE, "unidirectional"]
_TOKENS: Mapping[str, Row] = {number: plan.ABLATIONS[paper.TOKEN_COUNT, number] for number in ("5", "7", "8")}
_PRINTED: Mapping[str, tuple[tuple[PaperRow, ...], tuple[PaperRow, ...], str, str]] = {
    "sims": (paper.TABLE3, paper.TABLE5, "Table 3", "Table 5"), "meld": (paper.TABLE4, paper.TABLE6, "Table 4", "Table 6"),
}  # fmt: skip
# Applies a rule on one corpus: the paper's key of it, and the study's; both "" where a claim is about the method itself.
Find = Callable[[Evidence, str, str], Finding]


@dataclass(frozen=True)
class Judged:
    """A claim, the rule for it and what applies the rule."""

    claim: Claim
    rule: str
    find: Find
    of_the_paper_only: bool = False  # about the paper's very corpora: nothing to compare elsewhere


def claims() -> list[Judged]:
    """Every claim in the paper's order: in words, then the lines of the tables that the section speaks of."""
    every = [_in_words(claim) for claim in paper.CLAIMS] + [one for wanted in _PRINTED for one in _printed(wanted)]
    return sorted(every, key=lambda one: _ORDER.index(one.claim.section.split(",")[0]))  # stable


def _in_words(claim: Claim) -> Judged:
    if why := _NO_ROW.get(claim.id):
        return Judged(claim, f"none: {why}", lambda *at: Finding(NOT_TESTABLE, why))
    # A claim about SIMS-V2 and one about MELD share a name: "best" of `best-sims` and `best-meld`.
    name = claim.id.removesuffix(f"-{claim.corpora[0]}") if len(claim.corpora) == 1 else claim.id
    return Judged(claim, *_RULES[name], of_the_paper_only=name in ("table1", "mae", "corr", "wf1"))


def _printed(wanted: str) -> Iterator[Judged]:
    """A claim for each printed score but the full method's: CMPTA is better, or where the comparison prints so, the other."""
    (*others, full), ablated, compared, ablation = _PRINTED[wanted]
    for line in (*others, *(one for one in ablated if (one.group, one.method) in _ABLATED)):
        for metric, value in line.scores.items():
            shown, ours = METRICS[metric], full.scores[metric]  # type: ignore[index]
            label = shown.label.split()[0]
            if line in others:
                is_ours = shown.is_better(ours, value)
                first, second = (CMPTA.name, line.method) if is_ours else (line.method, CMPTA.name)
                says = f"{first} is better than {second} in {label} (CMPTA {shown.shown(ours)} against {shown.shown(value)})."
                claim = Claim(f"{wanted}-{line.method.lower()}-{label.lower()}", f"4.4, {compared}", says, "", (wanted,))
                yield Judged(claim, BETTER, _better(_named(first, second), shown.name))
            else:
                section, what, original = _ABLATED[line.group, line.method]
                row = plan.ABLATIONS[line.group, line.method]
                says = f"{what} ({label} {shown.shown(ours)}, then {shown.shown(value)})."
                slug = f"{wanted}-{row.name.replace(' ', '-')}"
                claim = Claim(slug, f"{section}, {ablation}", says, original, (wanted,))
                yield Judged(claim, f"the full method against it: {BETTER}", _better(_cmpta_than(row)))


Pairs = Callable[[str, str], Sequence[tuple[Row, Row]]]  # (paper's key, study's key) -> what is claimed better, than what


def _better(pairs: Pairs, metric: MetricName | None = None) -> Find:
    """The first of each pair better than the second; by the headline metric."""

    def find(evidence: Evidence, wanted: str, key: str) -> Finding:
        measure = metric or evidence.metric(key).name
        found = [evidence.better(key, measure, *pair) for pair in pairs(wanted, key)]
        return together(found) if found else Finding(NOT_TESTABLE, "this comparison has no such row")

    return find


def _cmpta_than(*rows: Row) -> Pairs:
    return lambda *at: [(CMPTA, row) for row in rows]


def _named(first: str, second: str) -> Pairs:
    def pairs(wanted: str, key: str) -> list[tuple[Row, Row]]:
        rows = {row.name: row for row in plan.comparison(key)}
        return [(rows[first], rows[second])] if {first, second} <= rows.keys() else []

    return pairs


def _rivals(wanted: str, key: str) -> list[tuple[Row, Row]]:
    """CMPTA and the row of each other printed method; on a user's own clips of those that are registered."""
    names = [line.method for line in plan.printed(wanted)[:-1]]
    return [(CMPTA, row) for row in plan.comparison(key) if row.name in names]


def _words_alone(wanted: str, key: str) -> list[tuple[Row, Row]]:
    """CMPTA and words as they are, and with a tuned soft prompt."""
    prompted = (row for row in plan.comparison(key) if row.method in plan.WITHOUT_MODALITIES and row != TEXT_ONLY)
    return [(CMPTA, TEXT_ONLY), *((CMPTA, row) for row in prompted)]


def _counts(evidence: Evidence, wanted: str, key: str) -> Finding:
    corpus, theirs = evidence.study.corpus(key), paper.TABLE1[PAPER_NAMES[wanted]]
    ours = {name: len(corpus.splits[name]) for name in SPLITS}
    same = all(getattr(theirs, name) == size for name, size in ours.items())
    return Finding(SUPPORTED if same else judge.NOT_SUPPORTED, "here " + ", ".join(f"{n} {size}" for n, size in ours.items()))


def _light(*at: object) -> Finding:
    sizes = {name: (counts.total(), frozen) for name, (counts, frozen) in at_papers_size().items()}
    said = [f"{name}: {ours:,} of {llm:,} = {100 * ours / llm:.2f} %" for name, (ours, llm) in sizes.items()]
    is_light = all(ours / llm < FEW for ours, llm in sizes.values())
    return Finding(SUPPORTED if is_light else judge.NOT_SUPPORTED, "; ".join(said))


def _compact(evidence: Evidence, *at: str) -> Finding:
    study, texts = evidence.study, []
    for key in (one for one in study.keys if not study.missing(CMPTA, one)):
        table, tokens = study.corpus(key).splits["test"].table, study.config(key).method.model_dump()["num_pseudo_tokens"]
        frames = float((table["audio_length"] + table["vision_length"]).mean())
        texts.append(f"{study.corpus(key).name}: {tokens} tokens for {frames:.0f} frames on average")
    return Finding(SUPPORTED, "; ".join(["by construction: the number of tokens does not depend on the clip", *texts]))


def _by_construction(text: str) -> tuple[str, Find]:
    finding = Finding(SUPPORTED, f"by construction: {text}")
    return "holds by construction, and a test fails otherwise", lambda *at: finding


def _number(metric: MetricName) -> tuple[str, Find]:
    return judge.NUMBER, lambda e, wanted, key: e.number(key, metric, _PRINTED[wanted][0][-1].scores[metric])


# Name of a claim, without the corpus that it is about -> its rule in words, and what applies it.
_RULES: Mapping[str, tuple[str, Find]] = {
    "lightweight": (RULES["light"], _light),
    "llm-untouched": _by_construction(
        "the LLM's weights take no gradient and are no part of a checkpoint (tests/test_model.py: only the adapter moves)"),
    "compact": ("holds by construction: the LLM reads a fixed number of tokens, whatever the number of frames", _compact),
    "padding": _by_construction(
        "padding is masked, its weight is exactly 0 (tests/test_adapter.py: weights sum to one on real frames)"),
    "table1": (judge.COUNTS, _counts),
    "mae": _number("mae"),
    "corr": _number("corr"),
    "wf1": _number("f1_weighted"),
    "best-of-all": (f"CMPTA against each: {BETTER}", _better(_rivals)),
    "best": (f"CMPTA against each: {BETTER}", _better(_rivals)),
    "fine-intensity": (f"CMPTA against each: {BETTER}", _better(_rivals, "corr")),
    "generalises": (f"CMPTA against each, on each corpus: {BETTER}", _better(lambda *at: [(CMPTA, TEXT_ONLY), *_rivals(*at)])),
    "tokens-help": (f"CMPTA against each: {BETTER}", _better(_words_alone)),
    "modalities": (f"CMPTA against text only, on each corpus: {BETTER}", _better(_cmpta_than(TEXT_ONLY))),
    "dropout": (f"first seed, test clips: {BETTER}", lambda e, wanted, key: e.dropout(key)),
    "alignment-most": (f"without adapter, and with one direction, against without alignment: {BETTER}",
                       _better(lambda *at: [(_ADAPTER, _ALIGNMENT), (_ONE_WAY, _ALIGNMENT)])),
    "attention": (judge.CUE, lambda e, wanted, key: e.cues(key)),
    "tokens-small": (judge.LITTLE, lambda e, wanted, key: e.little(key, _TOKENS)),
    "six-best": (f"6 tokens against 5, 7 and 8: {BETTER}", _better(_cmpta_than(*_TOKENS.values()))),
    "too-many": (f"6 tokens against 7 and 8: {BETTER}", _better(_cmpta_than(_TOKENS["7"], _TOKENS["8"]))),
    "sarcasm": (judge.SARCASM, lambda e, wanted, key: e.sarcasm(key)),
    "key-parts": (f"CMPTA against no alignment and no adapter, on each corpus: {BETTER}",
                  _better(_cmpta_than(_ALIGNMENT, _ADAPTER))),
}  # fmt: skip
_NO_ROW: Mapping[str, str] = {
    "layer-norm": "no row trains without them, and the paper gives no curve",
    "speakers": "no row isolates speakers or noise, and the paper measures neither",
    "transformer": "no row has a Transformer for the alignment, and the paper prints none",
    "contributions": "weights sum to 1 within each modality, whatever it contributes",
    "extensible": "the paper tries one LLM and one task per corpus",
}


def obstacle(study: Study, key: str) -> str:
    """Why this study can give no verdict on what the paper says of a corpus; "" where it can."""
    corpus = study.corpus(key)
    if corpus.generated:
        return f"{corpus.name} is generated and says nothing about the paper"
    if not study.is_paper_corpus(key):
        return f"{corpus.name} is no corpus of the paper"
    if study.smoke or study.changes:
        return "not the paper's settings"
    if study.llm_name != PROFILES["paper"].llm:
        return f"{'a tiny LLM stands' if is_tiny(study.llm_name) else study.llm_name + ' stands'} in for the paper's"
    return ""


def judge_all(study: Study) -> pd.DataFrame:
    """The claims table: one line per claim that applies to the study's corpora; on a user's own clips those about one corpus.

    Trains nothing; claims about attention open the first seed's model where cues are known.
    """
    evidence, lines, at = Evidence(study), [], {key: key for key in study.keys}
    if study.data:  # stands in for the corpus of the same kind of task
        at = {"sims" if study.corpus("data").task.kind == "regression" else "meld": "data"}
    for one in claims():
        claim = one.claim
        if not set(claim.corpora) <= set(at) or (study.data and one.of_the_paper_only):
            continue
        places = [(wanted, at[wanted]) for wanted in claim.corpora]
        found = together([one.find(evidence, *place) for place in places or [("", "")]])
        why = any(obstacle(study, key) for _, key in places)
        verdict = NOT_TESTABLE if why else found.verdict
        here = NOTHING if one.of_the_paper_only and why else found.verdict  # another corpus is no trial of its numbers
        corpora = [study.corpus(key) for _, key in places]
        tried = ", ".join(corpus.name + " (generated)" * corpus.generated for corpus in corpora) or "the method itself"
        says = claim.says + (f" ({claim.original})" if claim.original else "")
        lines.append([claim.id, claim.section, says, one.rule, verdict, tried, here, found.figures, found.decides])
    columns = ["claim", "section", "the paper says", "rule", VERDICT, "tried on", HERE, "figures of this run", _DECIDES]
    return pd.DataFrame(lines, columns=columns)


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims have which verdict, on the paper and by the same rule here; one-seed verdicts among their kind."""
    found = {name: table[name].replace(NOTHING, NO_TRIAL).str.removeprefix(ONE_SEED).value_counts() for name in (VERDICT, HERE)}
    counts = pd.DataFrame(found).reindex([*SIGNS]).fillna(0).astype(int)
    return counts[counts.sum(axis=1) > 0].rename_axis("claims").reset_index()


def summary(found: pd.DataFrame) -> Table:
    """`counted`, as it is read: with a colour before each verdict."""
    counts = counted(found)
    return Table(counts.assign(claims=counts["claims"].map(signed)).rename(columns={HERE: "same rule here"}), counts)


def signed(verdict: str) -> str:
    """A verdict with its colour."""
    said = verdict.replace(NOTHING, NO_TRIAL)
    return f"{SIGNS[said.removeprefix(ONE_SEED)]} {said}"


def rules() -> pd.DataFrame:
    """The rules by their short names, each with what it asks."""
    asks = dict(RULES) | {
        "better": f"{BETTER.removeprefix('better, ')}. A clear difference the other way is \"{judge.NOT_SUPPORTED}\", one no "
        f"larger than the sd over seeds \"{judge.INSIDE_SEEDS}\", one whose interval holds 0 \"{judge.INSIDE_CLIPS}\"",
        "by construction": "the code cannot do otherwise, and a test fails if it does",
        "none": "neither this run nor the paper has a number for it",
    }
    return pd.DataFrame(list(asks.items()), columns=["rule", "what it asks"])


def caption(study: Study) -> str:
    """What the table is, what its verdicts mean, and what they are not."""
    reasons = list(dict.fromkeys(filter(None, (obstacle(study, key) for key in study.keys))))
    said = [
        "The paper's claims, and what this run finds.",
        f"No verdict on the paper here: {'; '.join(reasons)}. \"{HERE}\" is about the method on that data." if reasons else "",
        f"With one seed their spread is unknown, and the verdict begins with \"{ONE_SEED.strip()}\".",
    ]
    return " ".join(filter(None, said))


def as_table(found: pd.DataFrame) -> Table:
    """What `judge_all` found, a line a claim, its rule by name; folded: the rule's words, the paper's, and every figure."""
    known = {one.claim.id: one.claim for one in claims()}
    says, figures = [known[name].says for name in found["claim"]], found["figures of this run"]
    decides = found[_DECIDES].where(found[_DECIDES] != "", figures)
    names = [next(name for name, text in RULES.items() if text in rule) for rule in found["rule"]]
    short = {"verdict here": found[HERE].map(signed), "§": found["section"], "the paper says": says}
    words = [rule.replace(RULES[name], name) if name != "none" else rule for name, rule in zip(names, found["rule"], strict=True)]
    details = {
        "the paper says": says, "in its own words": [known[name].original or NOTHING for name in found["claim"]], "rule": words,
        VERDICT: found[VERDICT], "every figure": figures.where(figures != decides, NOTHING),
    }  # fmt: skip
    return Table(
        pd.DataFrame(short | {"figures": decides, "rule": names}),
        found.drop(columns=_DECIDES),
        details=Table.of(pd.DataFrame(details)),
    )
