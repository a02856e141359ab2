"""The record: written whole or not at all, found again when damaged, moved by one function."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as ModelError

from mqi.case import BeamManifest, CaseManifest, CaseStatus, DoseSource, FileFact, JobStatus
from mqi.errors import ConfigurationError, ResourceError, ValidationError
from mqi.record import (
    BACKUP_NAME,
    HISTORY_NAME,
    MANIFEST_NAME,
    RECORD_NAME,
    TERMINAL,
    BeamRecord,
    CaseRecord,
    DoseRecord,
    LockHolder,
    advance,
    append_history,
    case_lock,
    read_history,
    read_record,
    rebuild,
    record_folder,
    try_case_lock,
    with_beam,
    write_record,
)
from tests.processes import CLEAN

KEY, FRACTION = "P1-12345678", "2026010120000000"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def manifest() -> CaseManifest:
    fact = FileFact(path="RP.dcm", size=1, sha256="0" * 64)
    beam = BeamManifest(number=2, name="1G000", layer_count=1, meterset_mu=1.5, deliveries=(), files=())
    return CaseManifest(
        key=KEY,
        patient_id="P1",
        plan_uid="1.2",
        folder="inbox/P1",
        plan=fact,
        machine="G2",
        fraction_id=FRACTION,
        fraction_number=3,
        beams=(beam,),
    )


def dose(path: str = "beam_2.dcm", content: bytes = b"dose") -> DoseRecord:
    return DoseRecord(
        job="j",
        attempt=1,
        host="local",
        slot="0",
        engine="analytic",
        engine_version="1",
        parameters_sha256="a",
        seed=7,
        calibration="G2 1",
        calibration_sha256="b",
        input_digest="c",
        output=FileFact(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest()),
        timings={"calculate": 1.5},
    )


def beam(number: int = 2, status: JobStatus = JobStatus.COMPLETED, error: str | None = None) -> BeamRecord:
    doses = {DoseSource.LOG: dose()} if status is JobStatus.COMPLETED else {}
    return BeamRecord(number=number, name=f"B{number}", status=status, error=error, doses=doses)


def record(**changes: object) -> CaseRecord:
    facts: dict[str, object] = {
        "status": CaseStatus.COMPLETED,
        "key": KEY,
        "fraction_id": FRACTION,
        "fraction_number": 3,
        "manifest": manifest(),
        "beams": (beam(),),
        "verdict": {"verdict": "pass", "reasons": []},
        "created_at": NOW,
        "updated_at": NOW,
    }
    return CaseRecord.model_validate(facts | changes)


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    folder = record_folder(tmp_path / "results", KEY, FRACTION)
    folder.mkdir(parents=True)
    (folder / "beam_2.dcm").write_bytes(b"dose")
    return folder


# ------------------------------------------------------------------------ write and read


def test_a_record_is_read_as_it_was_written_and_readable_without_this_program(folder: Path) -> None:
    assert read_record(folder) is None
    write_record(folder, record())
    assert read_record(folder) == record()
    raw = json.loads((folder / RECORD_NAME).read_text())
    assert raw["schema_version"] == 1
    assert raw["status"] == "completed"
    assert raw["beams"][0]["doses"]["log"]["host"] == "local"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    status=st.sampled_from(CaseStatus),
    verdict=st.none() | st.dictionaries(texts, json_values, max_size=4),
    message=texts,
    beams=st.lists(
        st.builds(
            BeamRecord,
            number=st.integers(1, 99),
            name=texts,
            status=st.sampled_from(JobStatus),
            error=st.none() | texts,
        ),
        max_size=4,
    ),
    attempt=st.integers(1, 99),
    at=st.datetimes(timezones=st.just(UTC)),
)
@settings(max_examples=40, deadline=None)
def test_any_record_survives_the_round_trip(**facts: object) -> None:
    facts["beams"] = tuple(facts["beams"])  # type: ignore[arg-type]
    facts["updated_at"] = facts.pop("at")
    one = record(**facts)
    with tempfile.TemporaryDirectory() as place:
        folder = record_folder(Path(place), KEY, FRACTION)
        write_record(folder, one)
        assert read_record(folder) == one
        (event,) = read_history(Path(place))
        assert event["status"] == one.status


@given(cut=st.integers(0, 10_000), noise=st.binary(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_torn_or_damaged_bytes_never_lose_the_last_good_record(cut: int, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = record_folder(Path(place), KEY, FRACTION)
        old = record(message="old")
        write_record(folder, old)
        write_record(folder, record(message="new"))
        content = (folder / RECORD_NAME).read_bytes()
        at = cut % len(content)
        (folder / RECORD_NAME).write_bytes(content[:at] + noise)
        try:
            found = read_record(folder)
        except ConfigurationError:
            return
        assert found is not None
        assert found.key == KEY
        if found.message == "old":
            assert found == old
            assert list(folder.glob("case.json.damaged-*"))
            assert read_record(folder) == old, "what was restored stands there from now on"


def test_the_record_before_is_kept_and_a_damaged_one_never_replaces_it(folder: Path) -> None:
    write_record(folder, record(message="1"))
    write_record(folder, record(message="2"))
    assert json.loads((folder / BACKUP_NAME).read_text())["message"] == "1"
    (folder / RECORD_NAME).write_text("{")
    write_record(folder, record(message="3"))
    assert json.loads((folder / BACKUP_NAME).read_text())["message"] == "1"
    assert read_record(folder).message == "3"  # type: ignore[union-attr]
    assert len(list(folder.glob("case.json.damaged-*"))) == 1


def test_a_deleted_record_stays_deleted_although_its_backup_is_there(folder: Path) -> None:
    write_record(folder, record())
    write_record(folder, record())
    (folder / RECORD_NAME).unlink()
    assert read_record(folder) is None


def test_a_newer_schema_is_a_configuration_error_and_is_left_alone(folder: Path) -> None:
    write_record(folder, record())
    raw = json.loads((folder / RECORD_NAME).read_text()) | {"schema_version": 2}
    (folder / RECORD_NAME).write_text(json.dumps(raw))
    with pytest.raises(ConfigurationError, match="Update MQI Communicator"):
        read_record(folder)
    assert json.loads((folder / RECORD_NAME).read_text()) == raw


def test_an_older_schema_is_brought_up_to_date_step_by_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mqi.record.store as store

    monkeypatch.setattr(
        store, "_MIGRATIONS", {0: lambda raw: raw | {"schema_version": 1, "message": "was 0"}}
    )
    write_record(folder, record())
    raw = json.loads((folder / RECORD_NAME).read_text()) | {"schema_version": 0}
    (folder / RECORD_NAME).write_text(json.dumps(raw))
    assert read_record(folder).message == "was 0"  # type: ignore[union-attr]
    (folder / RECORD_NAME).write_text(json.dumps(raw | {"schema_version": -5}))
    (folder / BACKUP_NAME).unlink(missing_ok=True)
    assert read_record(folder) is not None
    assert list(folder.glob("case.json.damaged-*"))


def test_a_record_in_another_fractions_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="another folder"):
        write_record(folder, record(fraction_id="2026010120000001"))


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "x" * 200, "a\nb", "-rf"])
def test_names_that_lead_elsewhere_name_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot name"):
        record_folder(tmp_path, KEY, name)
    with pytest.raises(ValidationError, match="cannot name"):
        record_folder(tmp_path, name, FRACTION)


def test_a_message_with_a_name_that_is_no_utf_8_is_still_recorded(folder: Path) -> None:
    write_record(folder, record(message="file \udcff is missing"))
    assert read_record(folder).message == "file \\udcff is missing"  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="not JSON compliant"):
        record(verdict={"rate": float("nan")})


def test_a_results_folder_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / KEY).write_text("a file where a folder should be")
    with pytest.raises(ResourceError, match="the record cannot be written"):
        write_record(tmp_path / KEY / FRACTION, record())


def test_a_record_without_a_time_zone_or_with_unknown_fields_is_refused() -> None:
    with pytest.raises(ModelError):
        record(updated_at=datetime(2026, 1, 1))
    with pytest.raises(ModelError):
        record(unknown=1)


# ------------------------------------------------------------------------------- rebuild


def test_a_lost_record_is_rebuilt_from_history_manifest_and_doses(folder: Path) -> None:
    write_record(folder, record())
    (folder / RECORD_NAME).write_bytes(b"\0" * 100)
    found = read_record(folder)
    assert found is not None
    assert found.model_copy(update={"updated_at": NOW}) == record()


def test_a_damaged_record_comes_back_in_its_last_state_not_in_the_one_before(folder: Path) -> None:
    write_record(folder, record(status=CaseStatus.PROCESSING, beams=()))
    write_record(folder, record())
    (folder / RECORD_NAME).write_text("{")
    found = read_record(folder)
    assert found is not None
    assert found.model_copy(update={"updated_at": NOW}) == record()


def test_without_a_history_a_damaged_record_is_taken_from_its_backup(folder: Path) -> None:
    write_record(folder, record(message="before"))
    write_record(folder, record(message="last"))
    (folder.parent.parent / "history.jsonl").unlink()
    (folder / RECORD_NAME).write_text("{")
    assert read_record(folder) == record(message="before")


def test_a_rebuilt_beam_whose_dose_changed_is_not_finished(folder: Path) -> None:
    write_record(folder, record(beams=(beam(2), beam(3))))
    (folder / "beam_2.dcm").write_bytes(b"DOSE")
    found = rebuild(folder)
    assert found.status is CaseStatus.FAILED
    assert [one.error for one in found.beams] == ["its dose was lost or changed"] * 2
    (folder / "beam_2.dcm").unlink()
    assert rebuild(folder).status is CaseStatus.FAILED


def test_a_case_that_was_running_is_rebuilt_as_partial_or_failed(folder: Path) -> None:
    beams = (beam(2), beam(3, JobStatus.RUNNING), beam(4, JobStatus.FAILED, "engine died"))
    write_record(folder, record(status=CaseStatus.PROCESSING, beams=beams))
    found = rebuild(folder)
    assert found.status is CaseStatus.PARTIAL
    assert [one.status for one in found.beams] == [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.FAILED]
    assert found.beams[2].error == "engine died"
    assert "run the fraction again" in found.message


def test_of_what_nothing_is_known_the_rebuilt_record_says_so(folder: Path) -> None:
    (folder / RECORD_NAME).write_text("[]")
    found = read_record(folder)
    assert found is not None
    assert found.status is CaseStatus.FAILED
    assert "run it again" in found.message
    assert found.key == KEY


def test_a_manifest_of_another_case_or_a_damaged_one_is_not_believed(folder: Path) -> None:
    write_record(folder, record())
    other = manifest().model_copy(update={"key": "other"})
    (folder / MANIFEST_NAME).write_text(other.model_dump_json())
    assert rebuild(folder).manifest is None
    (folder / MANIFEST_NAME).write_text("{")
    assert rebuild(folder).manifest is None


def test_a_dose_path_that_leads_out_of_the_folder_is_not_believed(folder: Path) -> None:
    outside = dose("../beam_2.dcm")
    (folder.parent / "beam_2.dcm").write_bytes(b"dose")
    finished = beam().model_copy(update={"doses": {DoseSource.LOG: outside}})
    write_record(folder, record(beams=(finished,)))
    assert rebuild(folder).beams[0].status is JobStatus.FAILED


# --------------------------------------------------------------------------------- moves


@given(st.lists(st.sampled_from(CaseStatus), max_size=12))
def test_whatever_is_asked_a_finished_case_changes_only_by_a_new_attempt(wishes: list[CaseStatus]) -> None:
    status: CaseStatus | None = None
    for wish in wishes:
        before = status
        try:
            status = advance(status, wish)
        except ValidationError as error:
            assert "cannot go from" in str(error)
            continue
        if before in TERMINAL and status != before:
            assert status in (CaseStatus.QUEUED, CaseStatus.PROCESSING)
        if status in (CaseStatus.COMPLETED, CaseStatus.PARTIAL) and status != before:
            assert before is CaseStatus.PROCESSING


def test_every_move_that_the_flows_need_is_there() -> None:
    way = [CaseStatus.WAITING, CaseStatus.QUEUED, CaseStatus.PROCESSING, CaseStatus.FAILED, CaseStatus.QUEUED]
    status: CaseStatus | None = None
    for step in [*way, CaseStatus.PROCESSING, CaseStatus.PROCESSING, CaseStatus.COMPLETED]:
        status = advance(status, step)


def test_a_failure_never_rewrites_a_finished_beam() -> None:
    one = record(beams=(beam(2), beam(3, JobStatus.RUNNING)))
    same = with_beam(one, beam(2, JobStatus.FAILED, "late failure"))
    assert same == one
    changed = with_beam(one, beam(3, JobStatus.FAILED, "engine died"))
    assert [b.status for b in changed.beams] == [JobStatus.COMPLETED, JobStatus.FAILED]
    assert [b.number for b in with_beam(changed, beam(1)).beams] == [1, 2, 3]


# ------------------------------------------------------------------------------- history


def _append_many(results: str, who: int) -> None:
    for count in range(25):
        append_history(Path(results), {"event": "test", "who": who, "count": count, "filler": "x" * 9000})


def test_eight_processes_append_and_no_line_is_lost_or_mixed(tmp_path: Path) -> None:
    workers = [CLEAN.Process(target=_append_many, args=(str(tmp_path), who)) for who in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    events = list(read_history(tmp_path))
    assert len(events) == 200
    for who in range(8):
        assert [e["count"] for e in events if e["who"] == who] == list(range(25))


def test_a_torn_last_line_is_passed_over_and_takes_no_other_with_it(tmp_path: Path) -> None:
    assert list(read_history(tmp_path)) == []
    append_history(tmp_path, {"n": 1})
    with (tmp_path / HISTORY_NAME).open("ab") as stream:
        stream.write(b'{"n": 2, "torn')
    assert [e["n"] for e in read_history(tmp_path)] == [1]
    append_history(tmp_path, {"n": 3, "korean": "환자", "bad": "\udcff"})
    assert [e["n"] for e in read_history(tmp_path)] == [1, 3]
    with (tmp_path / HISTORY_NAME).open("ab") as stream:
        stream.write(b"\xff\xfe\n[1]\n" + b"[" * 100_000 + b"\n")
    append_history(tmp_path, {"n": 4})
    assert [e["n"] for e in read_history(tmp_path)] == [1, 3, 4]
    assert all(datetime.fromisoformat(e["at"]).tzinfo for e in read_history(tmp_path))


def test_a_disk_that_is_full_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *_: 3)
    with pytest.raises(ResourceError, match="whole line"):
        append_history(tmp_path, {"n": 1})
    (tmp_path / "as-a-folder" / HISTORY_NAME).mkdir(parents=True)
    with pytest.raises(ResourceError, match="cannot be written"):
        append_history(tmp_path / "as-a-folder", {"n": 1})


# ---------------------------------------------------------------------------------- kill


_WRITER = """
import sys
from pathlib import Path
from tests.unit.test_record import record
from mqi.record import write_record
folder, n = Path(sys.argv[1]), 0
write_record(folder, record(message="0", beams=()))
print("go", flush=True)
while True:
    n += 1
    write_record(folder, record(message=f"{n}", reports=tuple("x" * 200 for _ in range(200)), beams=()))
"""


def test_a_writer_that_is_killed_at_any_moment_leaves_a_good_record(folder: Path) -> None:
    from mqi.record.store import _parsed

    for round_number in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"go\n"
        time.sleep(0.02 + 0.013 * round_number)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert _parsed(folder / RECORD_NAME) is not None
        assert _parsed(folder / BACKUP_NAME) is not None
    write_record(folder, record())
    assert not list(folder.glob("*.part")), "what a killed writer left is cleared away"
    assert read_record(folder) == record()
    assert [p.name for p in folder.iterdir() if "damaged" in p.name] == []


# --------------------------------------------------------------------------------- locks


def test_one_process_at_a_time_and_the_other_says_for_whom_it_waits(folder: Path) -> None:
    with case_lock(folder, flow_run="brave-otter") as mine:
        assert mine.acquired
        with try_case_lock(folder, flow_run="second") as other:
            assert not other.acquired
            assert other.pid == os.getpid()
            assert "flow run brave-otter on" in str(other)
    with try_case_lock(folder) as free:
        assert free.acquired
        assert f"process {os.getpid()}" in str(free)


def test_a_holder_that_died_while_signing_is_unknown_and_still_a_holder(folder: Path) -> None:
    with case_lock(folder):
        (folder / ".lock").write_text('{"pid": "torn')
        with try_case_lock(folder) as other:
            assert other == LockHolder(acquired=False)
            assert str(other) == "process unknown"


def test_the_lock_of_a_killed_process_is_free(folder: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mqi.record import case_lock\n"
        "with case_lock(Path(sys.argv[1]), flow_run='doomed'):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with try_case_lock(folder) as other:
        assert not other.acquired
        assert other.flow_run == "doomed"
    holder.kill()
    holder.wait()
    with case_lock(folder) as mine:
        assert mine.acquired


def test_a_lock_survives_nothing_of_a_deleted_folder(folder: Path) -> None:
    with case_lock(folder):
        shutil.rmtree(folder)
    with try_case_lock(folder) as mine:
        assert mine.acquired
