"""Where a detector runs: the CPU, unless somebody asks for another device; and how its memory is kept."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from onenip.errors import DeviceError

VARIABLE = "ONENIP_DEVICE"
NEVER = 2**31 - 1  # bytes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # settings of mallopt
# bytes; the largest tensor of an image has 26 MB, all of them have 100
_MAPPED_FROM, _MOST = 32 << 20, 256 << 20


def choose_device(name: str | None = None) -> torch.device:
    """The device of a name such as `cpu`, `cuda` or `cuda:1`; None for that of ONENIP_DEVICE.

    One variable decides for every command, so that what is served was judged on the same device. On a GPU,
    convolutions then keep all 32 bits, so that scores are the CPU's but for rounding.

    Raises:
        DeviceError: if this machine has no such device.
    """
    wanted = name or os.environ.get(VARIABLE) or "cpu"
    origin = "" if name else f"{VARIABLE}="
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise DeviceError(f"{origin}{wanted}: not a device; say cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"{origin}{wanted}: not supported; say cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"{origin}{wanted}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def keep_freed_memory(*, mapped_from: int = _MAPPED_FROM, most: int = _MOST) -> None:
    """Have this process keep what it frees for its next allocations, where the C library is glibc.

    Every image, and every step of a training, allocates and frees the same tensors, which glibc gives back to
    the kernel, and the kernel fills with zeros anew.

    Args:
        mapped_from: size in bytes from which an allocation is given back as soon as it is freed.
        most: bytes that are kept, about.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        mallopt(_MMAP_THRESHOLD, mapped_from)
        mallopt(_TRIM_THRESHOLD, most)
        mallopt(_ARENA_MAX, 1)  # those of further threads give back whatever is free
