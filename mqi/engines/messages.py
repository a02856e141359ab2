"""What an engine says and how it ends: progress, what it claims to have read, and why it failed."""

from __future__ import annotations

import re

from mqi.engines.contract import EngineInput
from mqi.errors import ConfigurationError, MQIError, ProcessingError, ResourceError

__all__ = ["check_report", "explain_exit", "progress_of"]

_BATCHES = re.compile(r"with (\d+) batches")
_BATCH = re.compile(r"Generating particles for \((\d+) of (\d+) batches\)")
_BEAMLETS = re.compile(r"Total beamlets \(Spots\)\s*:\s*(\d+)")
_HISTORIES = re.compile(r"Total histories \(Particles\)\s*:\s*(\d+)")

_LOGS = "Look at the engine's log, then press Retry"
_RETRIED = "It is tried again by itself; if it comes back, look at the GPU with nvidia-smi"

# Text that the engine, CUDA or the system prints -> (class, what happened, what to do). First hit wins.
_SAID: tuple[tuple[str, type[MQIError], str, str], ...] = (
    ("No free GPU remains", ResourceError, "the engine found no free GPU", _RETRIED),
    ("out of memory", ResourceError, "the GPU or the host ran out of memory", _RETRIED),
    ("bad_alloc", ResourceError, "the host ran out of memory", _RETRIED),
    ("No space left on device", ResourceError, "the host's disk is full", "Free disk space on the host"),
    ("devices are busy or unavailable", ResourceError, "the GPU was taken by someone else", _RETRIED),
    ("no CUDA-capable device", ResourceError, "the GPU cannot be seen any more", _RETRIED),
    ("fallen off the bus", ResourceError, "the GPU was lost", _RETRIED),
    ("GPU is lost", ResourceError, "the GPU was lost", _RETRIED),
    ("uncorrectable ECC", ResourceError, "the GPU reported a memory error", _RETRIED),
    ("driver version is insufficient", ConfigurationError, "the GPU driver is too old", "Update the driver"),
    (
        "no kernel image is available",
        ConfigurationError,
        "the engine was built for another GPU",
        "Rebuild it",
    ),
    ("Output directory exists", ProcessingError, "the output folder was there already", _LOGS),
    ("is not provided", ConfigurationError, "the engine misses a key in its input file", _LOGS),
    ("There is no RTPLAN in the path", ProcessingError, "the engine found no plan", _LOGS),
    (
        "Invalid beam number",
        ConfigurationError,
        "the engine does not know the beam",
        "Check beam_number_meaning",
    ),
    (
        "No matching log folder found",
        ConfigurationError,
        "the engine found no log folder for the beam",
        "Check how the engine build matches folders to beams",
    ),
)

_ENDED: dict[int, tuple[type[MQIError], str, str]] = {
    124: (
        ProcessingError,
        "the engine ran longer than its time limit",
        "Raise time_limit_s",
    ),
    126: (
        ConfigurationError,
        "the engine's program may not be executed",
        "Check its permissions on the host",
    ),
    127: (
        ConfigurationError,
        "the engine's program was not found",
        "Check the command in the engine's settings",
    ),
    134: (ProcessingError, "the engine refused its input and aborted", _LOGS),
    137: (ResourceError, "the engine was killed, most often for want of memory", _RETRIED),
    139: (ProcessingError, "the engine crashed with a segmentation fault", _LOGS),
    143: (ResourceError, "the engine was stopped from outside", "It is tried again by itself"),
    255: (ProcessingError, "the engine met a CUDA error", _LOGS),
}


def progress_of(line: str) -> float | None:
    """Part of the work done, 0 to 1, that a line of the engine's output tells of; None: nothing."""
    if match := _BATCH.search(line):
        done, batches = int(match[1]) - 1, int(match[2])
        return min(max(done / batches, 0.0), 1.0) if batches else None
    return 0.0 if _BATCHES.search(line) else None


def explain_exit(exit_code: int, stderr_tail: str) -> MQIError:
    """Why an engine that did not end with 0 failed, as the error to raise.

    ``exit_code`` as the shell has it (128 + signal) or as subprocess has it (-signal). What the engine said
    counts first, then how it ended.
    """
    status = 128 - exit_code if exit_code < 0 else exit_code
    last = next((line.strip() for line in reversed(stderr_tail.splitlines()) if line.strip()), "")[:300]
    said = f": {last}" if last else ""
    for text, kind, what, todo in _SAID:
        if text.lower() in stderr_tail.lower():
            return kind(f"{what} (exit status {status}){said}", todo=todo)
    if re.search(r"GPUassert:|CUDA error", stderr_tail):
        return ProcessingError(f"the engine met a CUDA error (exit status {status}){said}", todo=_LOGS)
    kind, what, todo = _ENDED.get(status, (ProcessingError, "the engine failed", _LOGS))
    return kind(f"{what} (exit status {status}){said}", todo=todo)


def check_report(stdout_text: str, engine_input: EngineInput) -> None:
    """Compare what the engine says it read with what was written; lines that are missing say nothing.

    Raises ProcessingError for another number of rows (the build reads another CSV dialect) or no histories.
    """
    if (match := _BEAMLETS.search(stdout_text)) and int(match[1]) != engine_input.rows:
        raise ProcessingError(
            f"the engine read {match[1]} rows of {engine_input.rows}: it reads another CSV dialect",
            todo="Set csv_dialect to what this engine build reads",
        )
    if (match := _HISTORIES.search(stdout_text)) and int(match[1]) == 0:
        raise ProcessingError("the engine simulated no histories", todo="Check its number of histories")
