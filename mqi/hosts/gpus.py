"""The GPUs of this machine, as NVIDIA's management library (NVML) tells them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pynvml

from mqi.hosts.base import Slot

__all__ = ["read_gpus"]

_GB = 1e9
_NVIDIA_VENDOR = "0x10de"  # PCI vendor id
_DISPLAY_CLASS = "0x03"  # PCI base class of display controllers, 3D controllers among them


def read_gpus(nvml: Any = pynvml, pci: Path = Path("/sys/bus/pci/devices")) -> tuple[tuple[Slot, ...], str]:
    """Return the healthy GPUs, and in words what is wrong with others ("" where nothing is).

    A GPU is healthy when it answers with its UUID and memory. Without NVIDIA's driver there is no GPU;
    but a driver that is installed and does not answer although a card is there is a problem, not a
    machine without GPUs: computing on its CPU would hide it.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return (), ""
    except nvml.NVMLError_DriverNotLoaded as error:
        return (), f"the NVIDIA driver is not loaded ({error})" if _has_card(pci) else ""
    except nvml.NVMLError as error:
        return (), f"the NVIDIA driver does not work ({error})"
    slots, problems = [], []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                slots.append(_read_gpu(nvml, index))
            except nvml.NVMLError as error:
                problems.append(f"GPU {index} does not answer ({error})")
    except nvml.NVMLError as error:
        problems.append(f"the NVIDIA driver does not work ({error})")
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return tuple(slots), "; ".join(problems)


def _read_gpu(nvml: Any, index: int) -> Slot:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    pids: tuple[int, ...] = ()
    with suppress(nvml.NVMLError):  # not supported on every card
        pids = tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return Slot(
        name=_text(nvml.nvmlDeviceGetUUID(handle)),
        kind="gpu",
        label=_text(nvml.nvmlDeviceGetName(handle)),
        memory_gb=round(memory.total / _GB, 1),
        pids=pids,
    )


def _text(value: str | bytes) -> str:
    """NVML's bindings gave bytes before their version 11.5."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _has_card(pci: Path) -> bool:
    for device in pci.glob("*"):
        with suppress(OSError):
            vendor = (device / "vendor").read_text().strip()
            if vendor == _NVIDIA_VENDOR and (device / "class").read_text().startswith(_DISPLAY_CLASS):
                return True
    return False
