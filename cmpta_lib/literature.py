"""What others have published for the methods of Tables 3 and 4, where it is not what the paper prints.

Scores as fractions for MAE and Corr and in per cent for F1, by the row's name. The same method on the same data differs by
2 MAE points and 4 to 8 Corr points between two tables of one group: read printed baselines as so uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published result of a method, beside the paper's."""

    scores: Mapping[str, float]  # metric name -> value
    source: str


_FIGURE = "ch-sims-v2, its figure of results"
_MMSA = "MMSA, results/result-stat.md"
_CSV = "MSE-Adapter, results of July 2024 to March 2025, five seeds"
ELSEWHERE: Mapping[str, tuple[Published, ...]] = {
    "LMF": (Published({"mae": 0.343, "corr": 0.6375}, _FIGURE), Published({"mae": 0.3672, "corr": 0.5569}, _MMSA)),
    "Self-MM": (Published({"mae": 0.335, "corr": 0.6403}, _FIGURE), Published({"mae": 0.3106, "corr": 0.6952}, _MMSA)),
    "MAG-BERT": (Published({"mae": 0.334, "corr": 0.6909}, _FIGURE),),
    "MSE-LLaMA2-7B": (Published({"mae": 0.3667, "corr": 0.5824}, _CSV), Published({"mae": 0.382, "corr": 0.553}, _CSV)),
    "MSE-Adapter": (
        Published({"mae": 0.311, "corr": 0.678}, "MSE-Adapter with Qwen-1.8B, its log of SIMS-V2, five seeds"),
        Published({"f1_weighted": 59.87}, "MSE-Adapter with Qwen-1.8B, its log of MELD, five seeds"),
        Published({"mae": 0.304}, "with ChatGLM3, in MGSI's paper, from notes on it"),
        Published({"mae": 0.293}, "with Qwen2.5-7B, in MGSI's paper, from notes on it"),
    ),
    "prototype prompt": (
        Published({"mae": 0.264, "corr": 0.769, "f1_weighted": 65.97}, "with ChatGLM3, its paper, from notes on it, five seeds"),
    ),
    "MGSI": (
        Published({"mae": 0.267}, "with ChatGLM3, its paper, from notes on it, three seeds"),
        Published({"mae": 0.286}, "with Qwen2.5-7B, its paper, from notes on it, three seeds"),
    ),
    "TFN": (Published({"f1_weighted": 57.74}, "as commonly quoted; no run of it on MELD is public"),),
    "MMGCN": (Published({"f1_weighted": 58.65}, "its paper; its code chooses the epoch on the test split"),),
    "GA2MIF": (Published({"f1_weighted": 58.94}, "its paper; its code chooses the epoch on the test split"),),
}
ALWAYS_NEUTRAL = 31.27  # weighted F1 of answering "neutral" to all 2,610 test utterances of MELD


def published(row: str, metric: str) -> list[tuple[float, str]]:
    """Every other published value of a row, with its source."""
    return [(found.scores[metric], found.source) for found in ELSEWHERE.get(row, ()) if metric in found.scores]
