"""A line of a table, as what must be run for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What one line of a table measures: a method, and the fields in which it differs from that method's settings.

    `llm`: the role of a frozen LLM of its own (`profiles.Profile.llms`); "" = the study's. `is_seeded`: where no draw decides
    its answers, the first seed's run stands for all.
    """

    name: str
    method: str = "cmpta"
    changes: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0  # times the learning rate of its settings
    llm: str = ""
    is_seeded: bool = True
