"""How two lists that should be equal, row by row, differ: which entry was changed, dropped, added, moved or swapped."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, TypeVar

MAX_EDITS = 400  # with more dropped and added entries than this, the lists are not of the same origin
_MAX_CELLS = 10_000  # of the table that pairs the entries of one damaged place

Kind = Literal["changed", "missing", "extra", "swapped", "moved"]
_Item = TypeVar("_Item", bound=Hashable)
_Row = TypeVar("_Row", bound=Hashable)


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
    items: Sequence[_Item],
    rows: Sequence[_Row],
    similarity: Callable[[_Item, _Row], float],
) -> list[Difference] | None:
    """The fewest differences that explain the copy; empty if it is equal, None beyond `MAX_EDITS`.

    Args:
        similarity: of two unequal entries, in [0, 1]; decides which of the entries at a damaged place were the same.
    """
    changed = [i for i, (ours, theirs) in enumerate(zip(items, rows, strict=False)) if ours != theirs]
    if len(items) == len(rows) and not changed:
        return []
    places = _edit_places(items, rows)
    if len(items) == len(rows) and len(changed) <= (MAX_EDITS if places is None else _cost(places)):
        found = [Difference("changed", i, i) for i in changed]
    elif places is None:
        return None
    else:
        found = [part for place in places for part in _explain(items, rows, place, similarity)]
    return _reunite(items, rows, found)


_Place = tuple[int, int, int, int]  # items[a:b] stand for rows[c:d]


def _edit_places(items: Sequence[Hashable], rows: Sequence[Hashable]) -> list[_Place] | None:
    """Where the lists differ, or None if that is nearly everywhere."""
    steps = SequenceMatcher(None, items, rows, autojunk=False).get_opcodes()
    places = [(a, b, c, d) for tag, a, b, c, d in steps if tag != "equal"]
    return places if _cost(places) <= MAX_EDITS else None


def _cost(places: list[_Place]) -> int:
    return sum(b - a + d - c for a, b, c, d in places)


def _explain(
    items: Sequence[_Item],
    rows: Sequence[_Row],
    place: _Place,
    similarity: Callable[[_Item, _Row], float],
) -> list[Difference]:
    a, b, c, d = place
    if a == b:
        first, choices = _slide(rows, c, d)
        return [Difference("missing", a, first, d - c, choices)]
    if c == d:
        first, choices = _slide(items, a, b)
        return [Difference("extra", first, c, b - a, choices)]
    pairs = _pair(items[a:b], rows[c:d], similarity)
    return [Difference(kind, a + i, c + j) for kind, i, j in pairs if kind != "changed" or items[a + i] != rows[c + j]]


def _slide(entries: Sequence[Hashable], start: int, stop: int) -> tuple[int, int]:
    """A block that may as well have been taken out earlier or later: its first place, and how many places there are."""
    first, last = start, start
    while first > 0 and entries[first - 1] == entries[first - 1 + stop - start]:
        first -= 1
    while last + stop - start < len(entries) and entries[last] == entries[last + stop - start]:
        last += 1
    return first, last - first + 1


def _pair(
    items: Sequence[_Item], rows: Sequence[_Row], similarity: Callable[[_Item, _Row], float]
) -> list[tuple[Kind, int, int]]:
    """Which item of a damaged place stands for which row, in order, or for none: (kind, item, row)."""
    n, m = len(items), len(rows)
    if n * m > _MAX_CELLS:
        both: list[tuple[Kind, int, int]] = [("changed", k, k) for k in range(min(n, m))]
        return both + [("extra", k, m) for k in range(m, n)] + [("missing", n, k) for k in range(n, m)]
    # In whole numbers, for the way back to be found by comparing sums.
    whole, alone = 1_000_000, 600_000  # a changed entry is likelier than a dropped and an added one
    cost = [[alone * (i + j) for j in range(m + 1)] for i in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            alike = 1.0 if items[i - 1] == rows[j - 1] else similarity(items[i - 1], rows[j - 1])
            cost[i][j] = min(
                cost[i - 1][j - 1] + round(whole * (1 - alike)), cost[i - 1][j] + alone, cost[i][j - 1] + alone
            )
    steps: list[tuple[Kind, int, int]] = []
    i, j = n, m
    while i or j:
        kind: Kind
        if i and cost[i][j] == cost[i - 1][j] + alone:
            i, kind = i - 1, "extra"
        elif j and cost[i][j] == cost[i][j - 1] + alone:
            j, kind = j - 1, "missing"
        else:
            i, j, kind = i - 1, j - 1, "changed"
        steps.append((kind, i, j))
    return steps[::-1]


def _reunite(items: Sequence[Hashable], rows: Sequence[Hashable], found: list[Difference]) -> list[Difference]:
    """Two changes that explain each other are a swap; a missing row and an equal extra item are a move."""
    left: list[Difference] = []
    for difference in found:
        partner = next((earlier for earlier in left if _belong_together(items, rows, earlier, difference)), None)
        if partner is None:
            left.append(difference)
        elif difference.kind == "changed":
            swap = Difference("swapped", difference.item, partner.row, other=difference.row)
            left[left.index(partner)] = swap
        else:
            extra, missing = (partner, difference) if partner.kind == "extra" else (difference, partner)
            left[left.index(partner)] = Difference("moved", extra.item, missing.row)
    return left


def _belong_together(
    items: Sequence[Hashable], rows: Sequence[Hashable], first: Difference, second: Difference
) -> bool:
    if first.kind == second.kind == "changed":
        return items[first.item] == rows[second.row] and items[second.item] == rows[first.row]
    if {first.kind, second.kind} != {"missing", "extra"} or first.count != 1 or second.count != 1:
        return False
    extra, missing = (first, second) if first.kind == "extra" else (second, first)
    return items[extra.item] == rows[missing.row]
