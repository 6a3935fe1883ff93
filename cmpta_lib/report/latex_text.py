"""Text in LaTeX: escaped, measured, and where it may be broken."""

from __future__ import annotations

import re

from cmpta_lib.report.layout import with_minus

CHINESE = re.compile("[\u3000-\u9fff\uff00-\uffef]")
_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be the optional argument of the line break before it,
    "*": "{*}",  # and this one a variant of that break
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "…": r"\dots{}",
    "²": r"\raisebox{.5ex}{2}",  # a raised digit of its own would be set at 6 pt
    "\N{MINUS SIGN}": "$-$",
    "\N{EM DASH}": "---",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
    "\n": r"\newline ",
}
_BREAK = "\N{ZERO WIDTH SPACE}"
# Where long names may be broken, beside spaces and hyphens: after a joint, before a letter.
_JOINTS = re.compile(r"(?<=[_./=:])(?=[A-Za-z])")
# Widths at 8 pt in points of Computer Modern, the widest of the usual text fonts, as TeX reports them, rounded up.
_WIDTHS = {
    **dict.fromkeys("!',.:;[]`il", 2.4),
    **dict.fromkeys("fj- ", 2.9),
    **dict.fromkeys("I()rst", 3.4),
    **dict.fromkeys("cez", 3.8),
    **dict.fromkeys("\"$*/0123456789\\^ago{}~?J", 4.4),
    **dict.fromkeys("LFZ", 5.6),
    **dict.fromkeys("EPBCTw", 6.2),
    **dict.fromkeys("RAHNUVXYDK&+=<>@OQG±×\N{MINUS SIGN}", 6.7),
    **dict.fromkeys("#%mM", 7.8),
    **dict.fromkeys("W|≈→…\N{EM DASH}", 8.8),
}
_OTHER_PT, _CHINESE_PT, BOLD = 4.8, 8.1, 1.16


def escaped(value: object) -> str:
    """Text as LaTeX prints it; signs before digits become minus and plus, hyphens stay: -0.095 but SIMS-2."""
    text = "".join(_SPECIAL.get(character, character) for character in str(value))
    text = re.sub(r"(?<![\w.)-])([+-])(?=\d)", r"$\1$", text)
    return text.replace(_BREAK, r"\allowbreak{}")


def paragraph(text: str) -> str:
    """Escaped text that may be broken inside of long names too."""
    return escaped(_JOINTS.sub(_BREAK, text))


def measured(text: str) -> float:
    """Width at 8 pt in points, rather too large than too small."""
    return sum(_CHINESE_PT if CHINESE.match(one) else _WIDTHS.get(one, _OTHER_PT) for one in with_minus(text))


def longest_piece(text: str) -> float:
    """Width in points of what cannot be broken."""
    pieces = re.split(r"\s+|(?<=-)(?=[A-Za-z])", _JOINTS.sub(" ", CHINESE.sub(r" \g<0> ", text)))
    return max(map(measured, pieces), default=0)
