"""Stopwatches that wait for the device, and what is made of their readings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_PRODUCT = {"cuda": 8192, "cpu": 2048}  # rows and columns of the product that the peak is measured with
_PRODUCTS = {"cuda": 20, "cpu": 5}


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, with all that it set off on the device; events of the device itself on a GPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


@dataclass(frozen=True)
class Spread:
    """Median and interquartile range."""

    median: float
    iqr: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, middle, high = np.percentile(values, [25, 50, 75])
        return cls(float(middle), float(high - low))


@dataclass(frozen=True)
class Line:
    """Least squares y = slope x + intercept, and the share of y's variance that it explains."""

    slope: float
    intercept: float
    r2: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Raises ValueError where there are not two different x."""
    if len(set(x)) < 2 or len(x) != len(y):
        raise ValueError(f"a line needs two different x and as many y, got x={list(x)} and {len(y)} y")
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    total = np.asarray(y) - np.mean(y)
    squares = float(total @ total)
    return Line(float(slope), float(intercept), 1.0 if squares == 0 else 1 - float(rest @ rest) / squares)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product here: the best of several, as a peak should be."""
    size = _PRODUCT[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    fastest = min(milliseconds(lambda: torch.mm(left, right), device) for _ in range(_PRODUCTS[device.type]))
    return 2 * size**3 / (fastest / 1000)
