"""The virtual environment: made once from the lock file, checked at every start, rebuilt when broken.

Only the standard library is imported here: this runs before anything is installed.

The environment carries ``mqi-lock.json``, which says which lock files were installed into it. It is
written last, so an interrupted installation is never taken for a finished one. A working environment that
this module did not make is never emptied: the locked packages are installed into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RUNTIME_LOCK", "TEST_LOCK", "BootstrapError", "Environment", "default_environment", "enter"]

REPOSITORY = Path(__file__).resolve().parent.parent
RUNTIME_LOCK = "requirements.lock"
TEST_LOCK = "requirements-test.lock"  # everything of the runtime lock, and the tools of the tests
MARKER = "mqi-lock.json"
GUARD = "mqi-bootstrap.guard"
LOG = "mqi-pip.log"
SAY_AGAIN_S = 15.0
LOG_TAIL_LINES = 25

Say = Callable[[str], None]


class BootstrapError(Exception):
    """The environment could not be made. The text says what a person can do."""


@dataclass(frozen=True)
class Environment:
    """Where the environment lies and which repository it serves."""

    folder: Path
    repository: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def digest(self, lock: str) -> str:
        """SHA-256 of a lock file."""
        return hashlib.sha256((self.repository / lock).read_bytes()).hexdigest()

    def marker(self) -> dict[str, object]:
        """What is known of the environment: state, made, python, locks. Empty when nothing is."""
        try:
            found = json.loads((self.folder / MARKER).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_marker(self, **facts: object) -> None:
        """Replace the marker in one step."""
        part = self.folder / f"{MARKER}.part"
        part.write_text(json.dumps(facts, indent=1, sort_keys=True))
        part.replace(self.folder / MARKER)

    def version(self) -> str:
        """Version of the environment's Python and whether pip is there; empty when it does not run."""
        code = "import pip, sys; print('%d.%d.%d' % sys.version_info[:3])"
        try:
            ran = subprocess.run([self.python, "-I", "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return ran.stdout.strip() if ran.returncode == 0 else ""

    def ready(self, lock: str) -> bool:
        """Whether the lock file, as it is now, is installed and the interpreter is the one it went into."""
        known = self.marker()
        locks = known.get("locks")
        if (
            known.get("state") != "ready"
            or not isinstance(locks, dict)
            or locks.get(lock) != self.digest(lock)
        ):
            return False
        return known.get("python") == self.version()


def default_environment() -> Environment:
    """``.venv`` in the repository, or the folder that MQI_VENV names."""
    folder = Path(os.environ.get("MQI_VENV") or REPOSITORY / ".venv")
    return Environment(folder.absolute(), REPOSITORY)


def enter(lock: str, argv: list[str], environment: Environment, say: Say) -> None:
    """Return when this process runs in a ready environment; otherwise make it and start anew inside it.

    Raises
    ------
    BootstrapError
        The environment could not be made.
    """
    ready = environment.ready(lock)
    if not ready:
        ensure(lock, environment, say)
    if not ready or Path(sys.prefix).resolve() != environment.folder.resolve():
        python = str(environment.python)
        os.execv(python, [python, "-m", "deployments", *argv])


def ensure(lock: str, environment: Environment, say: Say) -> None:
    """Make the environment hold what the lock file says. Two at once: the second waits for the first."""
    with _alone(environment.folder, say):
        if environment.ready(lock):
            return
        started = time.monotonic()
        known = environment.marker()
        adopted = known.get("made", False) is False and environment.version() != ""
        locks = _still_true(environment, known, lock)
        if adopted:
            say(f"Installing the locked packages into {environment.folder}, which was there already.")
        elif locks:
            say(f"Adding what {lock} names to {environment.folder}.")
        else:
            say(f"Making the Python environment {environment.folder} (about a minute, once).")
            _make(environment)
        environment.write_marker(state="installing", made=not adopted)
        _install(environment, lock, say)
        _see_repository(environment)
        installed = {**locks, lock: environment.digest(lock)}
        if lock == TEST_LOCK and (environment.repository / RUNTIME_LOCK).exists():
            installed[RUNTIME_LOCK] = environment.digest(RUNTIME_LOCK)
        environment.write_marker(
            state="ready", made=not adopted, python=environment.version(), locks=installed
        )
        say(f"The environment is ready ({time.monotonic() - started:.0f} s).")


def _still_true(environment: Environment, known: dict[str, object], lock: str) -> dict[str, object]:
    """The other lock files that a sound environment holds; empty when it has to be made anew."""
    locks = known.get("locks")
    sound = known.get("state") == "ready" and known.get("python") == environment.version()
    if not sound or not isinstance(locks, dict) or lock in locks:
        return {}
    current = all((environment.repository / name).exists() for name in locks) and all(
        environment.digest(name) == digest for name, digest in locks.items()
    )
    return dict(locks) if current else {}


@contextlib.contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """Hold the environment's guard file. The kernel frees it when this process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / GUARD).open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("Another command is making the Python environment; waiting for it.")
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _make(environment: Environment) -> None:
    """Empty the folder, but for the guard that is held, and make a fresh environment in it."""
    entries = [entry for entry in environment.folder.iterdir() if entry.name != GUARD]
    if entries and not {MARKER, "pyvenv.cfg"} & {entry.name for entry in entries}:
        raise BootstrapError(
            f"{environment.folder} holds other things and no Python environment; nothing in it was touched. "
            "Name another folder in MQI_VENV."
        )
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    environment.write_marker(state="making", made=True)
    base = getattr(sys, "_base_executable", None) or sys.executable
    ran = subprocess.run(
        [base, "-m", "venv", environment.folder], capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        version = "{}.{}".format(*sys.version_info[:2])
        detail = (ran.stdout + ran.stderr).strip()
        raise BootstrapError(
            f"Python could not make a virtual environment in {environment.folder}. On Debian and Ubuntu the "
            f"package python{version}-venv is needed: `apt install python{version}-venv`.\n{detail}"
        )


def _install(environment: Environment, lock: str, say: Say) -> None:
    """Install a lock file with pip, hashes checked, saying now and then that it goes on."""
    log = environment.folder / LOG
    # The lock names every package: nothing is to be resolved, and no version of pip does it differently.
    pip = [
        str(environment.python),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    started = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*pip, "--require-hashes", "-r", str(environment.repository / lock)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=environment.folder,
        )
        try:
            while True:
                try:
                    status = process.wait(SAY_AGAIN_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  installing packages ... {time.monotonic() - started:.0f} s, {_step(log)}")
        except BaseException:  # Ctrl-C must not leave pip at work
            process.kill()
            process.wait()
            raise
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise BootstrapError(
            f"pip could not install {lock} (exit status {status}). Its last words:\n\n{tail}\n\n"
            f"The whole log is {log}. On a network without a package index, point pip at your own "
            "(`pip config set global.index-url ...`) and run this command again."
        )


def _step(log: Path) -> str:
    """What pip is doing, for a person."""
    text = log.read_text(errors="replace")
    if "Installing collected packages" in text:
        return "unpacking"
    return f"{text.count(chr(10) + 'Collecting ')} packages fetched"


def _see_repository(environment: Environment) -> None:
    """Put the repository on the environment's import path, so that flows import from any folder."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ran = subprocess.run([environment.python, "-I", "-c", code], capture_output=True, text=True, check=True)
    (Path(ran.stdout.strip()) / "mqi-communicator.pth").write_text(f"{environment.repository}\n")
