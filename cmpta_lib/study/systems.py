"""The rows of the systems beyond the paper that have notebooks of their own."""

from __future__ import annotations

from cmpta_lib.study.row import Row

ROWS: tuple[Row, ...] = ()
