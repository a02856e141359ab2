"""The scanner: what is new, what waits, what can start; cheap for what is finished."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import mqi.scan.scanning as scanning
from mqi.case import CaseStatus, Verdict
from mqi.errors import ConfigurationError
from mqi.intake import IntakeRules, find_case_folders, freeze, look
from mqi.record import CaseRecord, case_lock, record_folder, write_record
from mqi.scan import INDEX_NAME, WORKLIST_DAYS, ScanIndex, ScanResult, scan
from mqi.scan.folders import case_paths, changed_folders
from tests.unit.case_folders import RULES, CaseFolder, case_fixture, pristine_fixture  # noqa: F401


class Scanner:
    """Scans an inbox; each scan comes 30 s after the one before, in real time at once."""

    def __init__(self, one: CaseFolder, results: Path) -> None:
        self.case = one
        self.results = results
        self.index = ScanIndex(results)
        self.now = datetime.now(UTC) + timedelta(minutes=1)
        self.rules = RULES

    def __call__(self, after_s: float = 30.0) -> ScanResult:
        self.now += timedelta(seconds=after_s)
        return scan(self.case.inbox, self.results, self.rules, self.index, self.now)

    def record(self, status: CaseStatus, choose: tuple[str, ...] = (), **changes: object) -> Path:
        found = look(self.case.folder, self.case.inbox, self.rules, choose=choose)
        fraction_id = found.fractions[0].fraction_id
        folder = record_folder(self.results, str(found.key), fraction_id)
        facts: dict[str, object] = {
            "status": status,
            "key": found.key,
            "fraction_id": fraction_id,
            "fraction_number": 1,
            "manifest": freeze(found, fraction_id),
            "created_at": self.now,
            "updated_at": self.now,
        }
        write_record(folder, CaseRecord.model_validate(facts | changes))
        return folder


@pytest.fixture(name="scanner")
def scanner_fixture(case: CaseFolder, tmp_path: Path) -> Iterator[Scanner]:
    scanner = Scanner(case, tmp_path / "results")
    yield scanner
    scanner.index.close()


def looks_taken(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Note every case folder whose files are really read."""
    taken: list[Path] = []
    real = scanning.looks

    def noted(folder: Path, root: Path, rules: IntakeRules):
        taken.append(folder)
        return real(folder, root, rules)

    monkeypatch.setattr(scanning, "looks", noted)
    return taken


def test_a_whole_case_is_ready_at_the_second_look_and_not_before(scanner: Scanner) -> None:
    first = scanner()
    assert first.ready == ()
    assert first.rows[0].status is CaseStatus.WAITING
    assert "may still be arriving" in first.rows[0].waiting_for[0]
    assert scanner(2.0).ready == (), "settle_s has not passed"
    (ready,) = scanner(5.0).ready
    assert ready.attempt == 1
    assert ready.idempotency_key == f"{ready.key}/{ready.fraction_id}/1"
    assert ready.folder == str(scanner.case.folder)


def test_a_file_that_still_grows_starts_the_waiting_anew(scanner: Scanner) -> None:
    scanner()
    with scanner.case.layer(0, 1).open("ab") as stream:
        stream.write(b"0" * 16)
    assert scanner().ready == ()
    assert len(scanner().ready) == 1


def test_a_site_without_settling_starts_at_once(scanner: Scanner) -> None:
    scanner.rules = IntakeRules(settle_s=0)
    assert len(scanner().ready) == 1


def test_a_waiting_case_says_what_for_and_since_when(scanner: Scanner) -> None:
    (scanner.case.folder.parent / "_CASE_READY").unlink()
    shutil.rmtree(scanner.case.deliveries[1])
    first = scanner()
    later = scanner(3600)
    (row,) = later.rows
    assert row.status is CaseStatus.WAITING
    assert row.waiting_for == ("beam 3 not delivered", "ready marker _CASE_READY has not arrived")
    assert row.since == first.rows[0].since


def test_a_quiet_case_is_not_walked_again_but_its_marker_and_files_are_noticed(
    scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = scanner.case.folder.parent / "_CASE_READY"
    marker.unlink()
    scanner()
    scanner(7200)
    walks: list[Path] = []
    real = scanning.signature_of
    monkeypatch.setattr(scanning, "signature_of", lambda *a: walks.append(a[0]) or real(*a))
    taken = looks_taken(monkeypatch)
    scanner(30)
    assert not walks
    marker.touch()
    scanner(30)
    assert len(walks) == 1
    assert len(taken) == 1
    assert len(scanner(30).ready) == 1
    scanner.case.layer(0, 1).write_bytes(b"")
    assert scanner(7200).ready == (), "a file that changed in its place is noticed later, but noticed"


def test_a_run_that_was_asked_for_is_not_asked_for_again_at_once(scanner: Scanner) -> None:
    scanner()
    (ready,) = scanner().ready
    scanner.index.mark_submitted(ready.key, ready.fraction_id, ready.attempt, scanner.now)
    again = scanner()
    assert again.ready == ()
    assert again.rows[0].status is CaseStatus.QUEUED
    assert scanner(700).ready == (ready,), "the same idempotency key: harmless if the first is only late"


def test_a_refused_case_is_shown_with_its_reason_once_it_is_settled(scanner: Scanner) -> None:
    scanner.case.edit_text(0, "PlanInfo.txt", "SYN00001", "OTHER")
    assert scanner().rows[0].status is CaseStatus.WAITING
    (row,) = scanner().rows
    assert row.status == "refused"
    assert "PlanInfo" in row.waiting_for[0]
    scanner.case.edit_text(0, "PlanInfo.txt", "OTHER", "SYN00001")
    scanner()
    assert len(scanner().ready) == 1


def test_a_case_without_a_plan_or_deliveries_is_on_the_list(scanner: Scanner) -> None:
    plan = scanner.case.plan
    plan.rename(scanner.case.inbox / "kept")
    assert scanner().rows[0].waiting_for == ("no RT Ion Plan has arrived",)
    (scanner.case.inbox / "kept").rename(plan)
    for delivery in scanner.case.deliveries:
        shutil.rmtree(delivery)
    assert scanner().rows[0].waiting_for == ("no delivery has arrived",)


def test_a_finished_case_is_listed_for_a_while_and_read_no_more(
    scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner()
    scanner.record(
        CaseStatus.COMPLETED, verdict={"verdict": "action"}, reports=("report.pdf",), message="Beam 2: look"
    )
    first = scanner()
    (row,) = first.rows
    assert (row.status, row.verdict) == (CaseStatus.COMPLETED, Verdict.ACTION)
    assert str(row.report).endswith("report.pdf")
    assert first.ready == ()
    monkeypatch.setattr(scanning, "state_of", None)
    monkeypatch.setattr(scanning, "looks", None)
    assert scanner().rows == first.rows
    old = scanner(WORKLIST_DAYS * 86400)
    assert old.rows == ()
    assert old.finished == 1


@pytest.mark.parametrize("status", [CaseStatus.FAILED, CaseStatus.PARTIAL])
def test_a_failed_case_stays_on_the_list_and_is_not_started_by_itself(
    scanner: Scanner, status: CaseStatus
) -> None:
    scanner.record(status, message="engine died")
    scanner()
    late = scanner(100 * 86400)
    assert late.ready == ()
    assert late.rows[0].status is status
    assert late.rows[0].message == "engine died"


def test_a_new_delivery_in_an_old_finished_case_is_noticed(scanner: Scanner) -> None:
    scanner.record(CaseStatus.COMPLETED)
    scanner()
    assert scanner(30 * 86400).finished == 1
    for index in (0, 1):
        scanner.case.copy_delivery(index, f"20270101090{index}0000")
    scanner()
    later = scanner()
    assert [ready.fraction_number for ready in later.ready] == [2]
    assert [row.status for row in later.rows] == [CaseStatus.COMPLETED, CaseStatus.NEW]


def test_a_repeat_of_a_finished_fraction_is_a_note_and_does_not_run(scanner: Scanner) -> None:
    scanner.record(CaseStatus.COMPLETED)
    first = scanner.case.deliveries[0].name
    again = scanner.case.copy_delivery(0, f"{first[:8]}2200{first[12:]}").name
    scanner()
    found = scanner()
    assert found.ready == ()
    assert found.rows[0].message == f"also delivered and not part of this result: {again}"


def test_a_deleted_record_makes_the_case_ready_again_with_a_new_attempt(scanner: Scanner) -> None:
    folder = scanner.record(CaseStatus.COMPLETED)
    scanner()
    shutil.rmtree(folder)
    scanner()
    (ready,) = scanner().ready
    assert ready.attempt == 2
    scanner.record(CaseStatus.COMPLETED, attempt=2)
    assert scanner().ready == ()
    shutil.rmtree(folder)
    scanner.index.close()
    (scanner.results / INDEX_NAME).unlink()
    scanner.index = ScanIndex(scanner.results)
    scanner()
    (ready,) = scanner().ready
    assert ready.attempt == 3, "the history knows it, with or without the index"


def test_without_its_index_a_scan_does_not_look_into_what_is_recorded_as_finished(
    scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner.record(CaseStatus.COMPLETED)
    taken = looks_taken(monkeypatch)
    assert scanner().rows[0].status is CaseStatus.COMPLETED
    assert scanner().rows[0].status is CaseStatus.COMPLETED
    assert not taken
    for index in (0, 1):
        scanner.case.copy_delivery(index, f"20270101090{index}0000")
    scanner()
    assert [ready.fraction_number for ready in scanner().ready] == [2]


def test_a_history_that_was_begun_anew_is_read_from_its_start(scanner: Scanner) -> None:
    folder = scanner.record(CaseStatus.COMPLETED)
    shutil.rmtree(folder)
    scanner()
    assert scanner().ready[0].attempt == 2
    (scanner.results / "history.jsonl").write_text("")
    assert scanner().ready[0].attempt == 2


def test_a_case_in_work_is_not_started_again_unless_it_died(scanner: Scanner) -> None:
    scanner()
    folder = scanner.record(CaseStatus.PROCESSING)
    found = scanner()
    assert found.ready == ()
    assert found.rows[0].status is CaseStatus.PROCESSING
    with case_lock(folder):
        assert scanner(3600).ready == (), "its process holds the lock: it lives"
    (ready,) = scanner().ready
    assert ready.attempt == 1, "the same run goes on, it is no new attempt"


def test_a_record_that_changes_is_read_again(scanner: Scanner) -> None:
    scanner.record(CaseStatus.COMPLETED)
    scanner()
    scanner()
    scanner.record(CaseStatus.PROCESSING)
    assert scanner().rows[0].status is CaseStatus.PROCESSING


def test_a_record_of_a_newer_version_is_shown_and_stops_no_other_case(scanner: Scanner) -> None:
    folder = scanner.record(CaseStatus.COMPLETED)
    text = (folder / "case.json").read_text()
    (folder / "case.json").write_text(text.replace('"schema_version": 1', '"schema_version": 9'))
    (row,) = scanner().rows
    assert row.status == "refused"
    assert "Update MQI Communicator" in row.waiting_for[0]


def test_a_fraction_that_a_person_chose_is_settled(scanner: Scanner) -> None:
    first = scanner.case.deliveries[0].name
    again = scanner.case.copy_delivery(0, f"{first[:8]}2200{first[12:]}").name
    assert scanner().ready == ()
    scanner.record(CaseStatus.COMPLETED, choose=(again, scanner.case.deliveries[1].name))
    (row,) = scanner().rows
    assert row.status is CaseStatus.COMPLETED
    assert row.message.endswith(first)


def test_a_case_that_left_the_inbox_leaves_the_list(scanner: Scanner) -> None:
    scanner()
    shutil.rmtree(scanner.case.folder.parent)
    assert scanner().rows == ()


def test_other_rules_forget_what_was_remembered(scanner: Scanner) -> None:
    scanner()
    scanner()
    scanner.rules = IntakeRules(ready_marker="_OTHER")
    assert "ready marker _OTHER has not arrived" in scanner().rows[0].waiting_for


def test_an_inbox_that_is_gone_is_a_configuration_error_and_forgets_nothing(scanner: Scanner) -> None:
    scanner()
    moved = scanner.case.inbox.rename(scanner.case.inbox.with_name("unmounted"))
    with pytest.raises(ConfigurationError, match="the inbox cannot be read"):
        scanner()
    moved.rename(scanner.case.inbox)
    assert len(scanner().ready) == 1


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_index_is_begun_anew(scanner: Scanner, content: bytes) -> None:
    scanner()
    scanner.index.close()
    for path in scanner.results.glob(f"{INDEX_NAME}*"):
        path.unlink()
    (scanner.results / INDEX_NAME).write_bytes(content)
    scanner.index = ScanIndex(scanner.results)
    scanner()
    assert len(scanner().ready) == 1


def test_an_index_that_is_damaged_under_a_running_scanner_is_begun_anew(scanner: Scanner) -> None:
    scanner()
    scanner.index._db.execute("DROP TABLE folders")
    assert scanner().ready == ()
    assert len(scanner().ready) == 1
    scanner.index._db.execute("PRAGMA user_version=99")
    with ScanIndex(scanner.results) as other:
        assert other.folders() == {}


def test_a_locked_index_is_not_thrown_away(scanner: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    import mqi.scan.index as index

    scanner()
    monkeypatch.setattr(index, "_BUSY_S", 0.05)
    with ScanIndex(scanner.results) as other, other.transaction():
        scanner.index.close()
        scanner.index = ScanIndex(scanner.results)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            scanner()
    assert len(scanner().ready) == 1


def test_a_name_that_is_no_utf_8_is_shown_and_stops_nobody(scanner: Scanner) -> None:
    shutil.copytree(scanner.case.folder, scanner.case.inbox / os.fsdecode(b"bad\xff"))
    found = scanner()
    assert any("not UTF-8" in text for row in found.rows for text in row.waiting_for)
    assert len(scanner().ready) == 1


def test_the_remembered_folders_are_always_those_that_a_full_search_finds(case: CaseFolder) -> None:
    """Any sequence of folders that come, go and change their kind: the cheap list equals the full one."""
    dice = random.Random(4)
    inbox = case.inbox
    plan, log = case.plan.read_bytes(), b"x" * 16
    names = ["G1", "A", "B", "2026010112000000"]
    known: dict[str, tuple[int, str]] = {}
    for step in range(250):
        folder = inbox.joinpath(*(dice.choice(names) for _ in range(dice.randint(1, 4))))
        action = dice.randrange(5)
        if action == 0:
            shutil.rmtree(folder, ignore_errors=True)
        elif not any(p.is_file() for p in [folder, *folder.parents]):
            folder.mkdir(parents=True, exist_ok=True)
            if action in (1, 2):
                (folder / ("RP.dcm" if action == 1 else "01_1.ptn")).write_bytes(plan if action == 1 else log)
            elif action == 3:
                (folder / "RP.dcm").unlink(missing_ok=True)
        if step % 3 == 0:
            time.sleep(0.005)  # the clock of a file system ticks every 4 ms
            moment = datetime.now(UTC).timestamp() + dice.choice([0, 0, 3600])
            changes = changed_folders(inbox, RULES, known, moment)
            known = {path: facts for path, facts in known.items() if path not in changes.gone} | changes.found
            cheap = sorted(case_paths({path: kind for path, (_, kind) in known.items()}))
            assert cheap == sorted(str(p.relative_to(inbox)) for p in find_case_folders(inbox, RULES)), step
