"""From host arrays to a device in one copy per kind of number, so that a GPU never waits for the host in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of one dtype, any shapes -> tensors of these shapes on the device.

    They travel as one block from pinned memory, asynchronously; on a CPU they become views of that block.
    """
    if not len({array.dtype for array in arrays}) == 1:
        raise ValueError(f"expected arrays of one dtype, got {sorted({str(array.dtype) for array in arrays})}")
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
