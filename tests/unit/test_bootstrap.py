"""The environment: made once, kept true to the lock, never half made, nobody's files lost."""

import ast
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from deployments import bootstrap
from deployments.bootstrap import MARKER, RUNTIME_LOCK, TEST_LOCK, BootstrapError, Environment, ensure

ROOT = Path(__file__).resolve().parents[2]


def wheel(folder: Path, name: str) -> str:
    """Write a wheel with one module; return its line for a lock file."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_in_it, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(name_in_it, text)
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def write_lock(repository: Path, lock: str, *names: str) -> None:
    lines = "".join(wheel(repository, name) for name in names)
    (repository / lock).write_text(f"--no-index\n--find-links {repository}\n{lines}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that `ensure` made, with its repository. To be copied, not changed."""
    repository = tmp_path_factory.mktemp("repository")
    (repository / "ours.py").write_text("HERE = True\n")
    write_lock(repository, RUNTIME_LOCK, "tiny_one")
    environment = Environment(repository / ".venv", repository)
    ensure(RUNTIME_LOCK, environment, lambda _: None)
    return environment


@pytest.fixture
def copy(made: Environment, tmp_path: Path) -> Environment:
    shutil.copytree(made.folder, tmp_path / ".venv", symlinks=True)
    for entry in made.repository.iterdir():
        if entry.is_file():
            shutil.copy(entry, tmp_path)
    return Environment(tmp_path / ".venv", tmp_path)


def runs(environment: Environment, code: str) -> bool:
    ran = subprocess.run([environment.python, "-c", code], cwd="/", capture_output=True, check=False)
    return ran.returncode == 0


def test_the_locked_packages_and_the_repository_can_be_imported_from_any_folder(made: Environment) -> None:
    assert made.ready(RUNTIME_LOCK)
    assert runs(made, "import tiny_one, ours")


def test_a_ready_environment_is_left_alone(made: Environment) -> None:
    said: list[str] = []
    ensure(RUNTIME_LOCK, made, said.append)
    assert said == []


def test_the_test_lock_is_added_without_making_the_environment_anew(copy: Environment) -> None:
    write_lock(copy.repository, TEST_LOCK, "tiny_one", "tiny_two")
    assert not copy.ready(TEST_LOCK)
    (copy.folder / "witness").touch()
    ensure(TEST_LOCK, copy, lambda _: None)
    assert copy.ready(TEST_LOCK) and copy.ready(RUNTIME_LOCK)
    assert runs(copy, "import tiny_one, tiny_two")
    assert (copy.folder / "witness").exists()


def test_a_changed_lock_makes_the_environment_anew_so_that_nothing_old_stays(copy: Environment) -> None:
    write_lock(copy.repository, RUNTIME_LOCK, "tiny_three")
    said: list[str] = []
    callers = [threading.Thread(target=ensure, args=(RUNTIME_LOCK, copy, said.append)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert copy.ready(RUNTIME_LOCK)
    assert runs(copy, "import tiny_three") and not runs(copy, "import tiny_one")
    # Two commands at once: one makes it, the other waits for that.
    assert sum(line.startswith("Making") for line in said) == 1
    assert any("waiting for it" in line for line in said)


@pytest.mark.parametrize("state", ["making", "installing"])
def test_an_interrupted_installation_is_not_taken_for_a_finished_one(copy: Environment, state: str) -> None:
    copy.write_marker(**{**copy.marker(), "state": state})
    assert not copy.ready(RUNTIME_LOCK)


@pytest.mark.parametrize("damage", ["marker", "python", "lock"])
def test_a_broken_environment_is_noticed(copy: Environment, damage: str) -> None:
    if damage == "marker":
        (copy.folder / MARKER).write_text("{ torn")
    elif damage == "python":
        copy.python.unlink()
    else:
        (copy.repository / RUNTIME_LOCK).write_text("# nothing\n")
    assert not copy.ready(RUNTIME_LOCK)


def test_an_environment_that_somebody_else_made_is_used_and_never_emptied(copy: Environment) -> None:
    (copy.folder / MARKER).unlink()
    (copy.folder / "theirs").write_text("precious")
    for _ in range(2):
        ensure(RUNTIME_LOCK, copy, lambda _: None)
        (copy.repository / RUNTIME_LOCK).write_text(
            (copy.repository / RUNTIME_LOCK).read_text() + "# newer\n"
        )
    assert (copy.folder / "theirs").read_text() == "precious"
    assert copy.marker()["made"] is False


def test_a_folder_of_other_things_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    write_lock(tmp_path, RUNTIME_LOCK, "tiny_one")
    with pytest.raises(BootstrapError, match="nothing in it was touched"):
        ensure(RUNTIME_LOCK, Environment(tmp_path, tmp_path), lambda _: None)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_package_that_is_not_the_locked_one_is_refused_with_what_pip_says(copy: Environment) -> None:
    write_lock(copy.repository, TEST_LOCK, "tiny_two")
    lock = (copy.repository / TEST_LOCK).read_text()
    (copy.repository / TEST_LOCK).write_text(lock[:-5] + "0000\n")
    with pytest.raises(BootstrapError, match="HASH"):
        ensure(TEST_LOCK, copy, lambda _: None)
    assert not copy.ready(TEST_LOCK)


def test_the_first_module_parses_on_python_3_6_so_that_it_can_say_what_is_missing() -> None:
    ast.parse((ROOT / "deployments/__main__.py").read_text(), feature_version=(3, 6))


def test_help_is_answered_before_anything_is_installed(tmp_path: Path) -> None:
    # -S: no site-packages, as on a machine where nothing was installed.
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "deployments", "--help"],
        cwd=ROOT,
        env={**os.environ, "MQI_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "demo" in ran.stdout and not (tmp_path / "venv").exists()


def test_the_environment_can_lie_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MQI_VENV", str(tmp_path / "elsewhere"))
    assert bootstrap.default_environment().folder == tmp_path / "elsewhere"
