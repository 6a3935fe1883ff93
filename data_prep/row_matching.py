"""How two lists that should be equal, row by row, differ: which entry was changed, dropped, added, moved or swapped."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

MAX_EDITS = 400  # with more dropped and added entries than this, the lists are not of the same origin
_MAX_CELLS = 10_000  # of the table that pairs the entries of one damaged place

Kind = Literal["changed", "missing", "extra", "swapped", "moved"]
_Step = tuple[Kind, int, int]  # item and row


@dataclass(frozen=True)
class Difference:
    """One thing that happened on the way from `rows` (the original) to `items` (the copy).

    changed: rows[row] became items[item].
    missing: `count` rows from rows[row] have no item; `choices` > 1 if the place is open, because the neighbours are
        equal: any `count` rows in a line from rows[row] to rows[row + choices + count - 2] may be the ones.
    extra: the same with items and rows exchanged.
    moved: rows[row] stands at items[item], out of order.
    swapped: rows[row] stands where rows[other] belongs, at items[item], and the other way round.
    """

    kind: Kind
    item: int  # for missing: where the rows would stand
    row: int  # for extra: where the items would stand
    count: int = 1
    choices: int = 1
    other: int = -1


def differences(
    items: Sequence[Hashable], rows: Sequence[Hashable], similarity: Callable[[Any, Any], float]
) -> list[Difference] | None:
    """The fewest differences that explain the copy; empty if it is equal, None beyond `MAX_EDITS`.

    Args:
        similarity: of two unequal entries, in [0, 1]; decides which of the entries at a damaged place were the same.
    """
    steps = SequenceMatcher(None, items, rows, autojunk=False).get_opcodes()
    places = [(a, b, c, d) for tag, a, b, c, d in steps if tag != "equal"]  # items[a:b] stand for rows[c:d]
    cost = sum(b - a + d - c for a, b, c, d in places)
    changed = [i for i, (ours, theirs) in enumerate(zip(items, rows, strict=False)) if ours != theirs]
    found: list[Difference] = []
    if len(items) == len(rows) and len(changed) <= min(cost, MAX_EDITS):
        found = [Difference("changed", i, i) for i in changed]
    elif cost > MAX_EDITS:
        return None
    else:
        for a, b, c, d in places:
            if a == b:
                first, choices = _slide(rows, c, d)
                found.append(Difference("missing", a, first, d - c, choices))
            elif c == d:
                first, choices = _slide(items, a, b)
                found.append(Difference("extra", first, c, b - a, choices))
            else:
                found += [Difference(kind, a + i, c + j) for kind, i, j in _pair(items[a:b], rows[c:d], similarity)]
    return _reunite(items, rows, found)


def _slide(entries: Sequence[Hashable], start: int, stop: int) -> tuple[int, int]:
    """A block that may as well have been taken out earlier or later: its first place, and how many places there are."""
    first = last = start
    while first > 0 and entries[first - 1] == entries[first - 1 + stop - start]:
        first -= 1
    while last + stop - start < len(entries) and entries[last] == entries[last + stop - start]:
        last += 1
    return first, last - first + 1


def _pair(
    items: Sequence[Hashable], rows: Sequence[Hashable], similarity: Callable[[Any, Any], float]
) -> list[_Step]:
    """Which item of a damaged place, in order, stands for which unequal row, or for none."""
    n, m = len(items), len(rows)
    if n * m > _MAX_CELLS:
        both: list[_Step] = [("changed", k, k) for k in range(min(n, m))]
        return both + [("extra", k, m) for k in range(m, n)] + [("missing", n, k) for k in range(n, m)]
    whole, alone = 1_000_000, 600_000  # in whole numbers; a changed entry is likelier than a dropped and an added one
    best: dict[tuple[int, int], tuple[int, list[_Step]]] = {}
    for i in range(n + 1):
        for j in range(m + 1):
            ways: list[tuple[int, list[_Step]]] = []
            if i:
                ways.append((best[i - 1, j][0] + alone, [*best[i - 1, j][1], ("extra", i - 1, j)]))
            if j:
                ways.append((best[i, j - 1][0] + alone, [*best[i, j - 1][1], ("missing", i, j - 1)]))
            if i and j:
                cost, steps = best[i - 1, j - 1]
                is_same = items[i - 1] == rows[j - 1]
                cost += 0 if is_same else round(whole * (1 - similarity(items[i - 1], rows[j - 1])))
                ways.append((cost, steps if is_same else [*steps, ("changed", i - 1, j - 1)]))
            best[i, j] = min(ways, key=lambda way: way[0]) if ways else (0, [])
    return best[n, m][1]


def _reunite(items: Sequence[Hashable], rows: Sequence[Hashable], found: list[Difference]) -> list[Difference]:
    """Two changes that explain each other are a swap; a missing row and an equal extra item are a move."""
    left: list[Difference] = []
    for new in found:
        for place, old in enumerate(left):
            extra, missing = (old, new) if old.kind == "extra" else (new, old)
            is_pair = {extra.kind, missing.kind} == {"extra", "missing"} and extra.count == missing.count == 1
            if old.kind == new.kind == "changed" and (items[old.item], items[new.item]) == (rows[new.row], rows[old.row]):
                left[place] = Difference("swapped", new.item, old.row, other=new.row)
                break
            if is_pair and items[extra.item] == rows[missing.row]:
                left[place] = Difference("moved", extra.item, missing.row)
                break
        else:
            left.append(new)
    return left
