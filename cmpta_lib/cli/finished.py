"""What finished runs are asked, and which runs are meant: `cmpta compare A B`, two side by side;
`cmpta predict RUN CLIP`, what a run says of clips of one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib import metrics
from cmpta_lib.cli.listing import SHORT, Listed, listed
from cmpta_lib.config import nearest, one_of, shown
from cmpta_lib.files import PUBLISHED, runs_folder
from cmpta_lib.runs import store
from cmpta_lib.runs.progress import cut, table
from cmpta_lib.runs.store import Run

if TYPE_CHECKING:
    from cmpta_lib.report.comparison import Versus
    from cmpta_lib.study.trained import Answer

_TEXT_COLUMNS, _ANSWER_COLUMNS, _VALUE_COLUMNS = 40, 24, 30
_MOST_CANDIDATES, _LINE = 3, 110


def compare(options: argparse.Namespace) -> int:
    """Print how two runs, or two rows with all their finished seeds, differ.

    Raises:
        ValueError, OSError: one of them is unknown, ambiguous, unfinished or damaged, or they are on different corpora.
    """
    from cmpta_lib.report.comparison import versus  # here: it draws in much that `predict` starts without

    every = listed(runs_folder() / "smoke" if options.smoke else runs_folder())
    if options.corpus:
        one_of("run on", options.corpus, sorted({row.corpus for row in every if row.corpus}))
    addressed = [*_addressed(options.a, every), *_addressed(options.b, every)]
    corpus = options.corpus or next((one.corpus for one in addressed), None)
    a, b = meant(options.a, every, corpus), meant(options.b, every, corpus)
    found, texts = versus(_runs(a), _runs(b)), _texts(a[0])
    if options.json:
        print(json.dumps(_as_json(a, b, found, texts, options.clips), indent=1))  # in ASCII
    else:
        print("\n".join(screen(a, b, found, texts, options.clips)))
    return 0


def predict(options: argparse.Namespace) -> int:
    """Print what a run says of clips; 1 where one has no answer. Raises as `asked`, `trained.load` and `TrainedRun.predict`."""
    run = asked(options.run)
    from cmpta_lib.study import trained  # torch

    given = {name: getattr(options, name) for name in ("text", "transcribe", "longest", "jobs")}
    with warnings.catch_warnings(action="ignore"):  # of texts that were cut: said of each clip
        found = trained.load(run, options.llm).predict(options.what, **given)
    if problems := [f"cmpta predict: no answer: {answer.problem}" for answer in found if answer.problem]:
        print("\n".join(problems), file=sys.stderr)
    print(json.dumps([vars(answer) for answer in found], indent=1) if options.json else "\n".join(answers(found)))
    return int(bool(problems))


def asked(text: str) -> str | Path:
    """What `trained.load` opens as the run that this means: what it takes itself, or the one run of `meant`; raises as that."""
    roots = [runs_folder(), runs_folder() / "smoke"]
    if text.startswith(f"{PUBLISHED}:") or any(os.path.isfile(root / Path(text) / store.CONFIG) for root in [Path(), *roots]):
        return text  # before all runs are looked at
    if os.path.exists(text):
        raise ValueError(f"{text} is no run: a run comes first, then what it is asked; `cmpta runs` lists those there are")
    if len(found := meant(text, [row for root in roots for row in listed(root)])) > 1:
        raise ValueError(f"'{text}' stands for {len(found)} runs; name one: {_candidates(found)}")
    return found[0].summary.folder


def answers(found: Sequence[Answer]) -> list[str]:
    """A table of answers, a line a clip."""
    rows = []
    for one in found:
        others = [(chance, text) for text, chance in one.probabilities.items() if text != one.text]
        chance = f"{one.probabilities[one.text]:.0%}" if one.text in one.probabilities else ""
        notes = [f"heard {_short(one.words, _TEXT_COLUMNS)!r}"] * (one.recognised and bool(one.words))
        notes += [f"no {what}" for what in one.missing] + [f"{kind} {n}" for kind, n in {**one.notes, **one.repairs}.items()]
        following = "{1} {0:.0%}".format(*max(others)) if others else ""
        rows.append([_short(one.id, _LINE), one.text or "no answer", chance, following, ", ".join(notes)])
    return table(["clip", "answer", "probability", "next", "missing, heard, noted"], rows, right=[2])


def meant(text: str, every: Sequence[Listed], corpus: str | None = None) -> list[Listed]:
    """The finished runs that a folder, a folder's name, the beginning of a hash, or a row's name stands for.

    Raises:
        ValueError: none or several different ones are, or what it names is not finished; lists the candidates.
    """
    named = [row for row in every if row.title.lower() == text.lower() and corpus in (None, row.corpus)]
    if not (found := _addressed(text, every) or named):
        hint = nearest(text, {row.title for row in every})
        raise ValueError(f"no run {shown(text)}{f' on {corpus}' * bool(corpus)}{hint}; `cmpta runs` lists those there are")
    if not (finished := [row for row in found if row.summary.state == "finished"]):
        first = found[0].summary
        raise ValueError(f"'{text}' cannot be asked: {first.folder.name} is {first.state}: {first.detail}")
    if len(corpora := sorted({row.corpus for row in finished})) > 1:
        raise ValueError(f"'{text}' was run on {' and '.join(corpora)}: give --corpus, or name one: {_candidates(finished)}")
    if len(runs := _runs(finished)) > 1:
        from cmpta_lib.report.comparison import differing

        if any(differing(runs[0], run, with_seed=False) for run in runs[1:]):
            raise ValueError(f"'{text}' stands for runs of different settings; name one: {_candidates(finished)}")
    return finished


def _addressed(text: str, every: Sequence[Listed]) -> list[Listed]:
    """The runs that a folder, its name, or the beginning of a hash means; none where the text is no such thing."""
    place, hashed = Path(text).resolve(), text if re.fullmatch(r"[0-9a-f]{4,12}", text) else "?"
    folders = [(row, row.summary.folder) for row in every]
    found = [row for row, at in folders if row.hash.startswith(hashed) or at.name == text or at.resolve() == place]
    if len(found) > 1:
        raise ValueError(f"'{text}' is the beginning of several runs; name one: {_candidates(found)}")
    if not found and os.path.isfile(place / store.CONFIG):  # a run that was copied elsewhere
        return [row for row in listed(place.parent) if row.summary.folder == place]
    return found


def _candidates(rows: Sequence[Listed]) -> str:
    shown = [f"{row.hash} ({row.title}, {row.corpus}, {row.model}, seed {row.seed})" for row in rows[:_MOST_CANDIDATES]]
    return ", ".join(shown) + (f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else "")


def _runs(rows: Sequence[Listed]) -> list[Run]:
    return [Run(row.summary.config, row.summary.folder) for row in rows if row.summary.config]


def _texts(row: Listed) -> dict[str, str]:
    """Test clip -> its words; none where the corpus is not here any more."""
    from cmpta_lib.runs.load import find_corpus  # torch

    assert row.summary.config
    try:
        corpus = find_corpus(row.summary.folder.resolve().parent / "cache" / "data", row.summary.config.data)
    except (OSError, ValueError):
        return {}
    clips = corpus.splits["test"].table
    return dict(zip(clips["id"], clips["text"], strict=True))


def screen(a: Sequence[Listed], b: Sequence[Listed], found: Versus, texts: dict[str, str], clips: int) -> list[str]:
    """The comparison's lines."""
    lines = [_title("A", a), _title("B", b), "", *_settings(found), ""]
    shown = [_score(one) for one in found.scores.to_dict(orient="records")]
    lines += table(["test", "A", "B", "A − B", "95 % interval", "p", "better"], shown)
    if found.left_out:
        lines.append(f"without {found.left_out} clips to which some run gave no score")
    both, only_a, only_b = int((found.clips["a_right"] & found.clips["b_right"]).sum()), *map(found.only_right, "ab")
    rule = f" (within {found.near:g} of the label)" if found.near else ""
    rule += ", in most seeds" if len(a) > 1 or len(b) > 1 else ""
    said, neither = f"both {both}, A alone {only_a}, B alone {only_b}", len(found.clips) - both - only_a - only_b
    lines += ["", f"right{rule}, of {len(found.clips)} clips: {said}, neither {neither}"]
    changed = found.clips[found.clips["a_error"] != found.clips["b_error"]].head(clips).itertuples()
    cells = [[one.id, _short(texts.get(one.id, ""), _TEXT_COLUMNS), one.label, _short(one.a), _short(one.b)] for one in changed]
    return lines + (["", *table(["clips that changed most", "text", "label", "A", "B"], cells)] if cells else [])


def _settings(found: Versus) -> list[str]:
    """The fields that both have and that differ, one a line; then those that only one of two methods has."""
    pairs = {name: ["none" if value is None else str(value) for value in pair] for name, pair in found.fields.items()}
    shared = [[name, *(cut(value, _VALUE_COLUMNS) for value in pairs[name])] for name in pairs if name in found.shared]
    lines = table(["setting", "A", "B"], shared) if shared else []
    for place, side in enumerate("AB"):
        own = [name for name, pair in found.fields.items() if name not in found.shared and pair[1 - place] is None]
        said = ", ".join(f"{name}={found.fields[name][place]}" for name in own)
        lines += textwrap.wrap(f"only {side} has {said}", _LINE, subsequent_indent="  ") if own else []
    return lines or ["the settings are the same"]


def _title(side: str, rows: Sequence[Listed]) -> str:
    many = "s" if len(rows) > 1 else ""
    seeds, runs = ", ".join(str(row.seed) for row in rows), ", ".join(row.hash[:SHORT] for row in rows)
    return f"{side}  {rows[0].title}, {rows[0].corpus}, seed{many} {seeds}  (run{many} {runs})"


def _short(text: str, width: int = _ANSWER_COLUMNS) -> str:
    return cut(" ".join(text.split()), width)


def _score(one: Mapping[str, Any]) -> list[str]:
    metric = next(metric for kind in metrics.TABLED.values() for metric in kind if metric.name == one["metric"])
    a, b = (" ".join(metric.shown(metric.scale * value) for value in one[side]) for side in "ab")
    difference, low, high = (metric.shown(metric.scale * one[name], "+") for name in ("difference", "low", "high"))
    return [metric.label, a, b, difference, f"[{low}, {high}]", f"{one['p_value']:.3f}", one["better"] or "not clear"]


def _as_json(a: Sequence[Listed], b: Sequence[Listed], found: Versus, texts: dict[str, str], clips: int) -> dict[str, Any]:
    return {
        "a": [row.as_json() for row in a],
        "b": [row.as_json() for row in b],
        "fields": {name: {"a": pair[0], "b": pair[1]} for name, pair in found.fields.items()},
        "scores": [one | {"better": one["better"] or None} for one in found.scores.to_dict(orient="records")],
        "left_out": found.left_out,
        "only_a_right": found.only_right("a"),
        "only_b_right": found.only_right("b"),
        "clips": [one | {"text": texts.get(str(one["id"]))} for one in found.clips.head(clips).to_dict(orient="records")],
    }
