"""The house holds: imports go one way, and nothing of the machine that it was built on is in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mqi

REPOSITORY = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "mqi": {"mqi"},
    "blocks": {"mqi", "blocks"},
    "tasks": {"mqi", "blocks", "tasks"},
    "flows": {"mqi", "blocks", "tasks", "flows"},
    "deployments": {"mqi", "blocks", "tasks", "flows", "deployments"},
}
ROOMS = set(MAY_IMPORT)
MODULES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))

KNOWN_HOSTS = {
    "127.0.0.1",  # the server and the UI listen there and nowhere else
    "localhost",
    "docs.prefect.io",  # where the README sends who does not know Prefect
    "www.w3.org",  # names of XML formats, never fetched
}
FOREIGN = {
    "a path of somebody's machine": re.compile(
        r"(?<![\w./~-])/(work|root|Users|home/(?!user\b|mqi\b)\w+)/\w"
    ),
    "a package index": re.compile(
        r"--(extra-)?index-url|--trusted-host|[\w.-]*(pypi|artifactory|nexus)[\w-]*\.\w+"
    ),
}
URL = re.compile(r"https?://([^\s/:\"'`)\]}>,]+)")


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(REPOSITORY).as_posix() for path in paths]


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all modules that a module imports, at its top, in a function, or by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield node.module or ""
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(REPOSITORY).parts[0]
    tops = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert (tops & ROOMS) <= MAY_IMPORT[room]
    assert "tests" not in tops
    if room == "mqi":
        assert not {top for top in tops if top.startswith("prefect")}


def test_the_check_sees_an_import_wherever_it_stands() -> None:
    code = "import flows.case\ndef f():\n    from tasks import x\n    importlib.import_module('prefect.cli')"
    assert set(imported(ast.parse(code))) == {"flows.case", "tasks", "prefect.cli"}


def test_all_of_mqi_can_be_imported_without_prefect() -> None:
    code = (
        "import importlib, pkgutil, sys, mqi\n"
        "found = [one.name for one in pkgutil.walk_packages(mqi.__path__, 'mqi.')]\n"
        "[importlib.import_module(name) for name in found if not name.endswith('__main__')]\n"
        "assert len(found) > 50, found\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in "
        "('prefect', 'blocks', 'tasks', 'flows', 'deployments')))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (ended.stdout.strip(), ended.returncode) == ("[]", 0), ended.stderr


def offered(tree: ast.Module) -> list[str] | None:
    """What a module says in ``__all__``, if it says so."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> set[str]:
    """Every name that a module binds, wherever it does."""
    found = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


OFFERED = {
    path.relative_to(REPOSITORY)
    .with_suffix("")
    .as_posix()
    .replace("/", ".")
    .removesuffix(".__init__"): offered(ast.parse(path.read_text()))
    for path in MODULES
}


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_a_module_has_what_it_offers_and_takes_from_others_what_they_offer(path: Path) -> None:
    tree = ast.parse(path.read_text())
    said = offered(tree) or []
    assert len(said) == len(set(said))
    assert set(said) <= defined(tree)
    assert not [name for name in said if name.startswith("_") and name != "__version__"]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and OFFERED.get(node.module or "") is not None:
            taken = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in OFFERED}
            assert taken <= set(OFFERED[node.module or ""] or ()), f"{node.module} does not offer it"


def texts() -> list[Path]:
    """Every file of the repository that a person reads or a machine runs; nothing that was made here."""
    hidden = [*(REPOSITORY / ".ci").iterdir(), REPOSITORY / ".gitignore"]
    made = {"build", "__pycache__"}
    found = [path for path in REPOSITORY.iterdir() if not path.name.startswith(".")]
    files = [
        file for path in found for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    ]
    kept = [
        file
        for file in [*hidden, *files]
        if not any(part in made or part.endswith(".egg-info") for part in file.relative_to(REPOSITORY).parts)
    ]
    return [file for file in kept if file.suffix not in (".png", ".jpg", ".pdf", ".dcm", ".pyc")]


def test_nothing_in_the_repository_names_this_machine_or_a_place_on_the_network() -> None:
    found = []
    for path in texts():
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            what = [name for name, pattern in FOREIGN.items() if pattern.search(line)]
            what += ["the folder of this very clone"] * (str(REPOSITORY) in line)
            what += [
                f"the host {host}"
                for host in URL.findall(line)
                if not host.startswith("{") and host not in KNOWN_HOSTS
            ]
            found += [
                f"{path.relative_to(REPOSITORY)}:{number} names {one}: {line.strip()[:80]}" for one in what
            ]
    mine = Path(__file__).relative_to(REPOSITORY).as_posix()
    assert not [line for line in found if not line.startswith(mine)]


def test_the_version_is_written_once_for_people_and_once_for_pip_and_is_the_same() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == mqi.__version__
