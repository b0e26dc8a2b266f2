"""Where a detector runs: the CPU, unless somebody asks for another device."""

from __future__ import annotations

import os

import torch

from onenip.errors import DeviceError

VARIABLE = "ONENIP_DEVICE"


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
