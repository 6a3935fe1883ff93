"""What this machine can run on, asked without importing torch."""

from __future__ import annotations

import ctypes
import os
import sys

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def gpu_count() -> int:
    """GPUs that the NVIDIA driver itself lets this process use (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):  # not 0: a driver without a usable GPU
        return 0
    return count.value


def take_device() -> None:
    """Use the GPU that the environment variable LOCAL_RANK numbers, where one is given and there are GPUs.

    Both torchrun and `processes.Processes` give it. Call before anything is loaded: "cuda" means this GPU from then on.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())
