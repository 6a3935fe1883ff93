"""What a measurement leaves: milliseconds by contender, and what the steps were made of."""

from __future__ import annotations

from dataclasses import dataclass, field

OURS, FLOOR, ANCESTOR = CONTENDERS = ("ours", "floor", "ancestor")
PARTS = ("data", "alignment", "adapter", "LLM forward", "LLM backward", "head and loss", "optimiser")


@dataclass
class Times:
    """Milliseconds of each timed step; of each timed evaluation batch, a clip."""

    steps: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CONTENDERS})
    answers: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], ANCESTOR: []})
    parts: list[dict[str, float]] = field(default_factory=list)  # of our steps, by part
    tokens: list[int] = field(default_factory=list)  # real positions that the LLM reads in each step
    frames: list[int] = field(default_factory=list)  # real frames of voice and face in it
    products: list[float] = field(default_factory=list)  # operations with the LLM's weights in each of these
    operations: list[float] = field(default_factory=list)  # of each floor step
    peak_rate: float = 0.0  # floating-point operations a second of a large product
