"""Orders to kill, obeyed by an installation under test at exactly the named moment of a step.

Every Python of the installation loads this module (its folder stands on PYTHONPATH). The product itself is
not changed: when a flow's process imports ``tasks``, the steps are wrapped by what looks for orders.

An order is a JSON file ``<name>.order`` in the folder that MQI_FATE names::

    {"case": "patient's folder", "step": "convert_beam", "moment": "os.rename", "kill": ["flow"]}

``moment`` is ``begin`` (before the step's work), ``end`` (after it, before its result is kept), or the name
of a Python audit event, with a word that its arguments hold: ``os.rename case.json`` is the instant before
``case.json`` gets its place, ``subprocess.Popen submit`` the instant before a job is submitted.
``kill`` names the victims, in this order: ``worker``, ``server``, ``engine``, ``supervisor``, ``flow``;
``forget`` removes what this machine knows of the run. Whoever obeys an order renames it to ``.done`` first:
an order is obeyed once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

STEPS = (
    "inspect_case",
    "interpret_beam",
    "upload_beam",
    "calculate_beam",
    "download_beam",
    "convert_beam",
    "assess_case",
    "report_case",
    "end_case",
    "clean_up_host",
)
PATIENCE_S = 180.0


class _Here(threading.local):
    """The steps that this thread is in, innermost last: (case, step)."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.obeying = False


HERE = _Here()


def _orders(case: str, step: str) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted(Path(os.environ["MQI_FATE"]).glob("*.order")):
        with contextlib.suppress(FileNotFoundError):
            order = json.loads(path.read_text())
            if order["case"] in Path(case).parts and order["step"] == step:
                found.append((path, order))
    return found


def _moment(event: str, said: str = "") -> None:
    """Obey the orders for this moment of this thread's step."""
    if HERE.obeying or not HERE.steps:
        return
    HERE.obeying = True  # what happens from here on raises audit events itself
    try:
        for path, order in _orders(*HERE.steps[-1]):
            name, _, word = order["moment"].partition(" ")
            if name == event and word in said:
                with contextlib.suppress(FileNotFoundError):  # another thread was first
                    path.rename(path.with_suffix(".done"))
                    _obey(order, said)
                    return  # one order for one moment
    finally:
        HERE.obeying = False


def _obey(order: dict[str, Any], said: str) -> None:
    home = Path(os.environ["MQI_HOME"])
    if order.get("forget"):
        from prefect import runtime

        (home / "prefect" / "alive" / str(runtime.flow_run.id)).unlink()
    for victim in order["kill"]:
        if victim == "flow":
            os.kill(os.getpid(), signal.SIGKILL)
        elif victim in ("engine", "supervisor"):
            os.kill(_of_job(victim, home, said), signal.SIGKILL)
        else:
            os.kill(_of_service(victim, home), signal.SIGKILL)


def _of_service(name: str, home: Path) -> int:
    """Process id of the worker or the server, once it is up (again) for good."""
    from deployments import processes
    from deployments.environment import Home

    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        record = processes.read(Home(home), name)
        if record is not None and processes.alive(record):
            with contextlib.suppress(OSError, ValueError):
                if json.loads((home / "run" / "up.json").read_text())[name] == record.pid:
                    return record.pid
        time.sleep(0.05)
    raise TimeoutError(f"no {name} to kill")


def _of_job(victim: str, home: Path, said: str) -> int:
    """Process id of a job's engine or supervisor, once the engine runs. ``said``: the follow command."""
    words = said.split("\0")
    name = words[words.index("follow") + 2]
    job = home / "workspace" / "jobs" / name
    end = time.monotonic() + PATIENCE_S
    while not (job / "child").exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{name} does not start")
        time.sleep(0.005)
    word = (job / "child").read_text().split()[0]
    return int(word if victim == "engine" else (job / "pid").read_text().split()[1])


def _wrapped(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        from prefect import runtime

        HERE.steps.append((runtime.flow_run.parameters["case"], name))
        try:
            _moment("begin")
            result = function(*args, **kwargs)
            _moment("end")
            return result
        finally:
            HERE.steps.pop()

    return step


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event in ("os.rename", "shutil.rmtree"):
        _moment(event, str(args[0]) + "\0" + str(args[1]))
    elif event == "subprocess.Popen":
        _moment(event, "\0".join(map(str, args[1])))


class _Wrapping(importlib.abc.MetaPathFinder):
    """Wraps the steps as soon as the package ``tasks`` has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "tasks":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            for step in STEPS:
                one = getattr(module, step)
                if hasattr(one, "fn"):
                    one.fn = _wrapped(step, one.fn)
                else:
                    setattr(module, step, _wrapped(step, one))
            sys.addaudithook(_hear)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "MQI_FATE" in os.environ:
    sys.meta_path.insert(0, _Wrapping())
