"""What arrives is what was sent, or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi.case import FileFact
from mqi.errors import ProcessingError, ResourceError, TransferError
from mqi.hosts import transfer
from mqi.hosts.transfer import (
    check_relative,
    copy_folder,
    copy_paths,
    ensure_room,
    folder_lock,
    missing_files,
    scan_folder,
    verify_folder,
)
from tests.processes import CLEAN


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "layers" / "deep").mkdir(parents=True)
    (source / "moqui_tps.in").write_text("Beam 1\n")
    (source / "layers" / "01.csv").write_bytes(os.urandom(3_000_000))
    (source / "layers" / "deep" / ".hidden ü").write_bytes(b"")
    return source


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_a_folder_arrives_whole_with_its_hashes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "there" / "unit"
    manifest = copy_folder(source, target)
    assert [fact.path for fact in manifest] == ["layers/01.csv", "layers/deep/.hidden ü", "moqui_tps.in"]
    for fact in manifest:
        data = (target / fact.path).read_bytes()
        assert data == (source / fact.path).read_bytes()
        assert fact == FileFact(path=fact.path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    verify_folder(target, manifest)
    assert target.stat().st_mode & 0o777 == 0o700
    assert (target / "moqui_tps.in").stat().st_mode & 0o777 == 0o600


def test_what_is_verified_is_not_sent_again_and_what_is_damaged_is(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "unit"
    manifest = copy_folder(source, target)
    before = {name: (target / name).stat().st_ino for name in names(target)}
    damaged = target / "layers" / "01.csv"
    data = bytearray(damaged.read_bytes())
    data[1_000_000] ^= 1  # the same size and, below, the same time
    times = damaged.stat()
    damaged.write_bytes(data)
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [fact.path for fact in missing_files(target, manifest)] == ["layers/01.csv"]
    with pytest.raises(TransferError, match="not what was sent"):
        verify_folder(target, manifest)
    assert copy_folder(source, target) == manifest
    after = {name: (target / name).stat().st_ino for name in names(target)}
    assert {name for name in before if before[name] != after[name]} == {"layers/01.csv"}
    verify_folder(target, manifest)


def test_leftovers_of_an_interrupted_copy_and_strangers_are_removed(source: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "unit", tmp_path / "outside"
    copy_folder(source, target)
    outside.mkdir()
    (outside / "keep").touch()
    (target / "layers" / ".0123456789abcdef.part").write_text("half")
    (target / "old" / "er").mkdir(parents=True)
    (target / "old" / "er" / "x").touch()
    (target / "link").symlink_to(outside)
    (target / "moqui_tps.in").unlink()
    (target / "moqui_tps.in").mkdir()
    (target / "moqui_tps.in" / "y").touch()
    (target / "layers" / "01.csv").unlink()
    (target / "layers" / "01.csv").symlink_to(source / "layers" / "01.csv")
    manifest = copy_folder(source, target)
    verify_folder(target, manifest)
    assert sorted(path.name for path in target.iterdir()) == ["layers", "moqui_tps.in"]
    assert (outside / "keep").exists()


def test_a_missing_and_an_additional_file_are_named(source: Path, tmp_path: Path) -> None:
    manifest = copy_folder(source, tmp_path / "unit")
    (tmp_path / "unit" / "more").touch()
    with pytest.raises(TransferError, match=r"more: a file is there that was not sent"):
        verify_folder(tmp_path / "unit", manifest)
    (tmp_path / "unit" / "more").unlink()
    (tmp_path / "unit" / "moqui_tps.in").unlink()
    with pytest.raises(TransferError, match=r"moqui_tps.in: a file is missing"):
        verify_folder(tmp_path / "unit", manifest)


def test_links_pipes_and_names_that_cannot_be_kept_are_refused(source: Path, tmp_path: Path) -> None:
    for place, message in (
        (source / "link", "links are not copied"),
        (source / "layers" / "loop", "links are not copied"),
        (source / "pipe", "only files and folders"),
        (source / "line\nfeed", "control characters"),
        (source / "latin\udce9", "not UTF-8"),
    ):
        if place.name in {"link", "loop"}:
            place.symlink_to("/etc/hostname" if place.name == "link" else source)
        elif place.name == "pipe":
            os.mkfifo(place)
        else:
            place.touch()
        with pytest.raises(TransferError, match=message):
            copy_folder(source, tmp_path / "unit")
        place.unlink()
    (tmp_path / "target-link").symlink_to(tmp_path)
    with pytest.raises(TransferError, match="target is a link"):
        copy_folder(source, tmp_path / "target-link")


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b c", "ü", "...", "-x"]), max_size=5).map("/".join))
def test_a_path_that_is_accepted_stays_below_its_folder(path: str) -> None:
    try:
        accepted = check_relative(path)
    except TransferError:
        assert path == "" or {"", ".", ".."} & set(path.split("/"))
        return
    assert os.path.normpath(f"/root/{accepted}") == f"/root/{path}"


def test_a_source_that_changes_while_it_is_copied_is_caught(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = source / "layers" / "01.csv"
    really_missing = transfer.missing_files

    def change(folder: Path, manifest: tuple[FileFact, ...]) -> tuple[FileFact, ...]:
        with busy.open("ab") as file:
            file.write(b"one more row\n")
        return really_missing(folder, manifest)

    monkeypatch.setattr(transfer, "missing_files", change)  # between the manifest and the copy
    with pytest.raises(TransferError, match="changed while it was copied"):
        copy_folder(source, tmp_path / "unit")
    assert names(tmp_path / "unit") == []


def test_a_file_that_is_written_all_the_time_never_arrives_torn(source: Path, tmp_path: Path) -> None:
    busy, stop = source / "layers" / "01.csv", threading.Event()

    def write() -> None:
        number = 0
        while not stop.wait(0.001):
            number += 1
            with busy.open("r+b") as file:
                file.seek(number * 7919 % 3_000_000)
                file.write(b"%d" % number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(TransferError, match="changed while it was copied"):
            for _ in range(200):
                copy_folder(source, tmp_path / "unit")
    finally:
        stop.set()
        writer.join()


def test_a_file_that_cannot_be_read_is_named(source: Path, tmp_path: Path) -> None:
    manifest = scan_folder(source)
    (source / "moqui_tps.in").unlink()
    with pytest.raises(TransferError, match=r"moqui_tps.in: cannot read the file \(No such file"):
        transfer._copy_all(source, tmp_path / "unit", manifest)
    with pytest.raises(TransferError, match="cannot read the folder"):
        copy_folder(source / "none", tmp_path / "unit2")
    pipe = source / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TransferError, match="not a regular file"):
        transfer._fact(source, "pipe")


def _scan_as_nobody(folder: Path, said: Any) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may read everything
    with pytest.raises(TransferError) as error:
        scan_folder(folder)
    said.put(str(error.value))


def test_a_file_without_the_right_to_read_it_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret").touch(mode=0)
        said = CLEAN.Queue()
        process = CLEAN.Process(target=_scan_as_nobody, args=(folder, said))
        process.start()
        assert "secret: cannot read the file (Permission denied)" in said.get(timeout=60)
        process.join()


def test_room_is_asked_for_before_a_byte_is_copied(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="must stay free"):
        copy_folder(source, tmp_path / "unit", reserve_bytes=10**18)
    assert names(tmp_path / "unit") == []
    with pytest.raises(ResourceError):
        ensure_room(tmp_path, 10**18)
    with pytest.raises(TransferError, match="disk space"):
        ensure_room(tmp_path / "none", 0)


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False
        ).returncode
    )
    monkeypatch.setattr(transfer, "ensure_room", lambda *_: None)  # another took the room since
    if not mounted:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    try:
        with pytest.raises(ResourceError, match="No space left on device"):
            copy_folder(source, disk / "unit")
        assert names(disk / "unit") == []
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


def test_a_copy_that_the_disk_garbled_is_not_given_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def garble(descriptor: int) -> None:
        if os.fstat(descriptor).st_size:
            os.pwrite(descriptor, b"\0garbled", 0)

    monkeypatch.setattr(os, "fsync", garble)
    with pytest.raises(TransferError, match="the copy is not what was sent"):
        copy_folder(source, tmp_path / "unit")
    assert names(tmp_path / "unit") == []


def _copy(source: Path, target: Path, begun: Any) -> None:
    begun.set()
    copy_folder(source, target)


def test_a_copy_that_is_killed_anywhere_is_finished_by_the_next(source: Path, tmp_path: Path) -> None:
    for number in range(30):
        (source / f"{number:02}.csv").write_bytes(os.urandom(50_000))
    target = tmp_path / "unit"
    for delay_ms in (3, 8, 15, 25):
        begun = CLEAN.Event()
        process = CLEAN.Process(target=_copy, args=(source, target, begun))
        process.start()
        assert begun.wait(60)
        time.sleep(delay_ms / 1000)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for name in names(target) if target.exists() else []:
            if not name.endswith(".part"):
                assert (target / name).read_bytes() == (source / name).read_bytes()
    verify_folder(target, copy_folder(source, target))
    assert names(target) == names(source)


def _locked_copy(source: Path, target: Path) -> None:
    with folder_lock(target.parent / ".unit.lock"):
        copy_folder(source, target)


def test_four_processes_may_send_the_same_folder_at_once(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "unit"
    processes = [CLEAN.Process(target=_locked_copy, args=(source, target)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    verify_folder(target, scan_folder(source))


def test_results_come_back_by_name_or_by_folder(source: Path, tmp_path: Path) -> None:
    facts = copy_paths(source, ["layers", "moqui_tps.in", "layers/01.csv"], tmp_path / "back")
    assert [fact.path for fact in facts] == names(source) == names(tmp_path / "back")
    verify_folder(tmp_path / "back", facts)
    with pytest.raises(ProcessingError, match="an expected file is not there"):
        copy_paths(source, ["dose.raw"], tmp_path / "back")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/hostname", "layers/../../x", "", "layers/", "link", "linked/hostname"]
)
def test_nothing_is_fetched_from_outside_the_job(source: Path, tmp_path: Path, path: str) -> None:
    (source / "link").symlink_to("/etc/hostname")
    (source / "linked").symlink_to("/etc")
    with pytest.raises(TransferError):
        copy_paths(source, [path], tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_target_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TransferError, match="cannot write the copy"):
        copy_folder(source, tmp_path / "file" / "unit")
    with pytest.raises(TransferError, match="cannot write the copy"):
        copy_paths(source, ["layers"], tmp_path / "file" / "back")
    with pytest.raises(TransferError, match="cannot lock"), folder_lock(tmp_path / "none" / "lock"):
        pass
