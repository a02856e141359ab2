"""What a host says about itself in one command: clock, disk, cores, and its GPUs as nvidia-smi lists them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mqi.hosts.base import Slot

__all__ = ["LOOK", "HostFacts", "parse_facts"]

_MIB_PER_GB = 1e9 / 2**20  # nvidia-smi gives memory in MiB

LOOK = r"""
look() { # WORKSPACE
  printf 'TIME %s\n' "$(date +%s.%N)"
  printf 'FREE %s\n' "$(df -Pk -- "$1" 2>/dev/null | awk 'END { printf "%.0f", $4 * 1024 }')"
  printf 'CORES %s\n' "$(nproc)"
  for card in /sys/bus/pci/devices/*; do
    [ "$(cat "$card/vendor" 2>/dev/null)" = 0x10de ] || continue
    case $(cat "$card/class" 2>/dev/null) in 0x03*) echo CARD; break ;; esac
  done
  command -v nvidia-smi >/dev/null 2>&1 || return 0
  fields=index,uuid,name,memory.total,utilization.gpu,temperature.gpu
  gpus=$(timeout -k 1 20 nvidia-smi --query-gpu=$fields --format=csv,noheader,nounits 2>&1)
  printf 'SMI %s\n' "$?"
  printf '%s\n' "$gpus" | sed 's/^/GPU /'
  apps=$(timeout -k 1 20 nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader 2>/dev/null) ||
    return 0
  printf '%s\n' "$apps" | sed 's/^/APP /'
}
"""
"""A shell function whose output `parse_facts` reads. CARD: an NVIDIA card is on the bus."""


@dataclass(frozen=True)
class HostFacts:
    """What a host said. ``trouble`` is what is wrong with its GPUs ("" where nothing is)."""

    time_s: float | None
    free_bytes: int | None
    cores: int
    gpus: tuple[Slot, ...]
    trouble: str


def parse_facts(text: str) -> HostFacts:
    """Read the output of `LOOK`.

    A host without nvidia-smi and without a card has no GPUs. One with a card whose driver does not answer
    is in trouble: computing on its CPU would hide it.
    """
    rows = [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines())]
    first = dict(reversed(rows))
    gpus: list[Slot] = []
    problems: list[str] = []
    apps = [rest.split(",") for word, rest in rows if word == "APP"]
    status = first.get("SMI")
    if status == "0":
        for rest in (rest for word, rest in rows if word == "GPU" and rest.strip()):
            slot = _gpu(rest, apps)
            if slot:
                gpus.append(slot)
            else:
                problems.append(f"a GPU does not answer ({rest.strip()})")
    elif status is not None:
        said = " ".join(rest for word, rest in rows if word == "GPU").strip()[:200]
        if "CARD" in first or status == _HANGS or gpus:
            problems.append(
                f"nvidia-smi fails with status {status}: {said}" if status != _HANGS else "nvidia-smi hangs"
            )
    elif "CARD" in first:
        problems.append("there is an NVIDIA card but no nvidia-smi: the driver is not installed")
    free, cores = first.get("FREE", ""), first.get("CORES", "")
    return HostFacts(
        time_s=_number(first.get("TIME", "")),
        free_bytes=int(free) if free.isdecimal() else None,
        cores=max(1, int(cores)) if cores.isdecimal() else 1,
        gpus=tuple(gpus),
        trouble="; ".join(problems),
    )


_HANGS = "124"  # status of timeout(1)


def _gpu(row: str, apps: list[list[str]]) -> Slot | None:
    """Read a row of nvidia-smi. A GPU that is lost has no UUID or no memory."""
    fields = [field.strip() for field in row.split(",")]
    if len(fields) < 6 or not fields[0].isdecimal() or not fields[1].startswith("GPU-"):
        return None
    index, uuid, *name, memory, load, temperature = fields
    memory_mib = _number(memory)
    if not memory_mib:
        return None
    return Slot(
        name=uuid,
        kind="gpu",
        label=", ".join(name),
        memory_gb=round(memory_mib / _MIB_PER_GB, 1),
        pids=tuple(
            int(pid.strip())
            for owner, pid, *_ in (app for app in apps if len(app) > 1)
            if owner.strip() == uuid and pid.strip().isdecimal()
        ),
        index=int(index),
        load_percent=_number(load),
        temperature_c=_number(temperature),
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
