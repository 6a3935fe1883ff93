"""`cmpta compare A B`: which runs are meant, and the comparison as a screen or as JSON."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmpta_lib import metrics
from cmpta_lib.cli.listing import SHORT, Listed, as_json, listed
from cmpta_lib.figures.clips import NEAR
from cmpta_lib.files import runs_folder
from cmpta_lib.report.versus import Scored, Versus, differing, versus
from cmpta_lib.runs import store
from cmpta_lib.runs.progress import cut, summarise, table
from cmpta_lib.runs.store import Run
from cmpta_lib.study.naming import names
from cmpta_lib.study.plan import every_row

_TEXT_COLUMNS, _ANSWER_COLUMNS, _VALUE_COLUMNS = 40, 24, 30
_MOST_CANDIDATES, _MOST_NEAR, _LINE = 12, 3, 110


def compare(options: argparse.Namespace) -> int:
    """Print how two runs, or two rows with all their finished seeds, differ.

    Raises:
        ValueError, OSError: one of them is unknown, ambiguous, unfinished or damaged, or they are on different corpora.
    """
    root = runs_folder() / "smoke" if options.smoke else runs_folder()
    every = list(listed(root))
    corpus = options.corpus or next((one.corpus for text in (options.a, options.b) if (one := _addressed(text, every))), None)
    a, b = meant(options.a, every, corpus), meant(options.b, every, corpus)
    found = versus(_runs(a), _runs(b))
    texts = _texts(a[0])
    if options.json:
        print(json.dumps(_as_json(a, b, found, texts, options.clips), indent=1, ensure_ascii=False))
    else:
        print("\n".join(screen(a, b, found, texts, options.clips)))
    return 0


def meant(text: str, every: Sequence[Listed], corpus: str | None = None) -> list[Listed]:
    """The finished runs that a folder, a folder's name, the beginning of a hash, or a row's name stands for.

    Raises:
        ValueError: none or several different ones are, or what it names is not finished; lists the candidates.
    """
    if one := _addressed(text, every):
        if one.summary.state != "finished":
            raise ValueError(f"{one.summary.folder.name} ({one.title}) cannot be compared: {_why(one)}")
        return [one]
    named = [row for row in every if row.title.lower() == text.lower() and corpus in (None, row.corpus)]
    if not named:
        near = difflib.get_close_matches(text, {row.title for row in every}, n=_MOST_NEAR)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; `cmpta runs` lists those there are"
        raise ValueError(f"no run '{text}'{f' on {corpus}' if corpus else ''}{hint}")
    finished = [row for row in named if row.summary.state == "finished"]
    if not finished:
        raise ValueError(f"'{text}': none of its {len(named)} runs is finished; the first: {_why(named[0])}")
    if len(corpora := sorted({row.corpus for row in finished})) > 1:
        raise ValueError(f"'{text}' was run on {' and '.join(corpora)}: say which with --corpus")
    runs = _runs(finished)
    if any(differing(runs[0], run, with_seed=False) for run in runs[1:]):
        raise ValueError(f"'{text}' stands for runs of different settings; name one: {_candidates(finished)}")
    return finished


def _addressed(text: str, every: Sequence[Listed]) -> Listed | None:
    """The run that a folder, its name, or the beginning of its hash means; None where the text is no such thing."""
    place = Path(text)
    for row in every:
        if row.summary.folder.name == text or (place.is_dir() and row.summary.folder.resolve() == place.resolve()):
            return row
    if (place / store.CONFIG).is_file():  # a run that was copied elsewhere
        summary = summarise(next(one for one in store.found(place.resolve().parent) if _folder(one) == place.resolve()))
        return Listed(summary, names(place.resolve().parent, every_row)(summary.config) if summary.config else None)
    if not re.fullmatch(r"[0-9a-f]{4,12}", text):
        return None
    found = [row for row in every if row.hash.startswith(text)]
    if len(found) > 1:
        raise ValueError(f"'{text}' begins the hashes of {len(found)} runs: {_candidates(found)}")
    return found[0] if found else None


def _folder(entry: Run | tuple[Path, str]) -> Path:
    return entry.folder if isinstance(entry, Run) else entry[0]


def _why(row: Listed) -> str:
    return f"{row.summary.state}: {row.summary.detail}"


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
    lines = [_title("A", a), _title("B", b), ""]
    lines += _settings(found)
    lines += ["", *table(["test", "A", "B", "A − B", "95 % interval", "p", "better"], [_score(one) for one in found.scores])]
    if found.left_out:
        lines.append(f"without {found.left_out} clips to which some run gave no score")
    right = int((found.clips["a_right"] & found.clips["b_right"]).sum())
    wrong = len(found.clips) - right - found.only_right("a") - found.only_right("b")
    rule = f" (within {NEAR:g} of the label)" if any(one.metric is metrics.MAE for one in found.scores) else ""
    rule += ", in most seeds" if len(a) > 1 or len(b) > 1 else ""
    lines += ["", f"right{rule}, of {len(found.clips)} clips: both {right}, A alone {found.only_right('a')}, "]
    lines[-1] += f"B alone {found.only_right('b')}, neither {wrong}"
    changed = found.clips[found.clips["a_error"] != found.clips["b_error"]].head(clips)
    if len(changed):
        shown = changed.assign(text=[_short(texts.get(name, ""), _TEXT_COLUMNS) for name in changed["id"]])
        shown[["a", "b"]] = shown[["a", "b"]].map(_short)
        cells = shown[["id", "text", "label", "a", "b"]].to_numpy().tolist()
        lines += ["", *table(["clips that changed most", "text", "label", "A", "B"], cells)]
    return lines


def _settings(found: Versus) -> list[str]:
    """The fields that both have and that differ, one a line; then those that only one of two methods has."""
    shared = {name: pair for name, pair in found.fields.items() if name in found.shared}
    lines = table(["setting", "A", "B"], [[name, *map(_value, pair)] for name, pair in shared.items()]) if shared else []
    for place, side in enumerate("AB"):
        own = [f"{name}={pair[place]}" for name, pair in found.fields.items() if name not in shared and pair[1 - place] is None]
        if own:
            lines += textwrap.wrap(f"only {side} has {', '.join(own)}", _LINE, subsequent_indent="  ")
    return lines or ["the settings are the same"]


def _title(side: str, rows: Sequence[Listed]) -> str:
    many = "s" if len(rows) > 1 else ""
    seeds, runs = ", ".join(str(row.seed) for row in rows), ", ".join(row.hash[:SHORT] for row in rows)
    return f"{side}  {rows[0].title}, {rows[0].corpus}, seed{many} {seeds}  (run{many} {runs})"


def _value(value: Any) -> str:
    return cut("none" if value is None else str(value), _VALUE_COLUMNS)


def _short(text: str, width: int = _ANSWER_COLUMNS) -> str:
    return cut(" ".join(text.split()), width)


def _score(one: Scored) -> list[str]:
    metric, found = one.metric, one.difference
    a, b = (" ".join(metric.shown(metric.scale * value) for value in side) for side in (one.a, one.b))
    difference, low, high = (metric.shown(metric.scale * v, "+") for v in (found.difference, found.low, found.high))
    return [metric.label, a, b, difference, f"[{low}, {high}]", f"{found.p_value:.3f}", one.better or "not clear"]


def _as_json(
    a: Sequence[Listed], b: Sequence[Listed], found: Versus, texts: dict[str, str], clips: int
) -> dict[str, Any]:
    scores = [
        {"metric": one.metric.name, "a": one.a, "b": one.b, **vars(one.difference), "better": one.better or None}
        for one in found.scores
    ]
    changed = found.clips.head(clips).to_dict(orient="records")
    return {
        "a": [as_json(row) for row in a],
        "b": [as_json(row) for row in b],
        "fields": {name: {"a": pair[0], "b": pair[1]} for name, pair in found.fields.items()},
        "scores": scores,
        "left_out": found.left_out,
        "only_a_right": found.only_right("a"),
        "only_b_right": found.only_right("b"),
        "clips": [{**clip, "text": texts.get(str(clip["id"]))} for clip in changed],
    }
