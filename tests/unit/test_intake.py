"""Intake: which folders are cases, which fractions are whole, what the others wait for."""

from __future__ import annotations

import os
import random
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as ModelError

from mqi.case import Delivery
from mqi.errors import ConfigurationError, ValidationError
from mqi.files import sha256_of
from mqi.intake import (
    Arriving,
    IntakeRules,
    chosen_fraction,
    find_case_folders,
    fractions_of,
    freeze,
    is_case_folder,
    is_settled,
    look,
    looks,
    signature_of,
)
from mqi.intake.grouping import layer_spans
from mqi.synthesize import SPOILS, Recipe, SyntheticCase, synthesize_case
from tests.unit.case_folders import (  # noqa: F401
    NO_MARKER,
    RULES,
    CaseFolder,
    case_fixture,
    pristine_fixture,
)


def seen(one: CaseFolder, rules: IntakeRules = RULES, **options: object):
    return look(one.folder, one.inbox, rules, **options)  # type: ignore[arg-type]


def waiting(one: CaseFolder, rules: IntakeRules = RULES) -> str:
    found = seen(one, rules)
    assert not found.problems
    assert not any(fraction.whole for fraction in found.fractions)
    return " | ".join([*found.waiting_for, *(text for f in found.fractions for text in f.waiting_for)])


def refused(one: CaseFolder, rules: IntakeRules = RULES) -> str:
    found = seen(one, rules)
    assert found.problems
    assert not any(fraction.whole for fraction in found.fractions)
    with pytest.raises(ValidationError, match="cannot be computed as it is"):
        freeze(found, "any")
    return " | ".join(found.problems)


# ------------------------------------------------------------------------------- whole


def test_a_whole_case_is_whole_and_has_no_problem(case: CaseFolder) -> None:
    found = seen(case)
    assert found.problems == ()
    (fraction,) = found.fractions
    assert fraction.whole
    assert fraction.waiting_for == fraction.warnings == ()
    assert fraction.number == 1
    assert fraction.fraction_id == case.deliveries[0].name
    assert found.machine == "G2"
    assert len(found.companions.ct) == len(case.ct)
    assert [number for number, _ in found.companions.beam_doses] == [2, 3]


def test_the_manifest_names_every_byte_that_will_be_used(case: CaseFolder) -> None:
    found = seen(case)
    manifest = freeze(found, found.fractions[0].fraction_id)
    assert [beam.number for beam in manifest.beams] == [2, 3]
    facts = [manifest.plan, *manifest.ct]
    facts += [fact for beam in manifest.beams for fact in (*beam.files, beam.tps_dose) if fact]
    facts.append(manifest.tps_plan_dose)  # type: ignore[arg-type]
    named = {fact.path for fact in facts}
    everything = {p.relative_to(case.folder).as_posix() for p in case.folder.rglob("*") if p.is_file()}
    assert named == everything
    for fact in facts:
        assert fact.sha256 == sha256_of(case.folder / fact.path)
        assert fact.size == (case.folder / fact.path).stat().st_size
    assert manifest.beam(2).layer_count == len(
        {layer.number for d in manifest.beam(2).deliveries for layer in d.layers}
    )


def test_a_look_reads_no_log_and_does_not_hash(case: CaseFolder) -> None:
    """The content of a log may be anything of the right length: a look cannot know."""
    log = case.layer(0, 1)
    os.utime(log, ns=(0, 0))
    before = seen(case)
    log.write_bytes(b"\xff" * log.stat().st_size)
    os.utime(log, ns=(0, 0))
    assert seen(case) == before


@pytest.mark.parametrize("name", sorted(SPOILS))
def test_each_spoilt_case_is_what_its_description_says(name: str, tmp_path: Path) -> None:
    spoil = SPOILS[name]
    synthesize_case(tmp_path / "inbox", Recipe.small(tps_dose=False, medium="water"), name)
    found = [
        one
        for folder in find_case_folders(tmp_path / "inbox", RULES)
        for one in looks(folder, tmp_path / "inbox", RULES)
    ]
    assert len(found) == (2 if spoil.beside_the_unspoilt else 1)
    text = " | ".join(
        part
        for one in found
        for part in (
            *one.problems,
            *one.waiting_for,
            *(t for f in one.fractions for t in (*f.waiting_for, *f.warnings)),
        )
    )
    computable = all(f.whole for one in found for f in one.fractions) and all(one.fractions for one in found)
    if spoil.expect == "waiting":
        assert not computable
        assert not any(one.problems for one in found)
        assert spoil.message in text
    elif spoil.expect == "refused" and name != "wrong-layer-number":  # that stands in the log itself
        assert any(one.problems for one in found)
        assert spoil.message in text or name == "damaged-dicom"  # where it is cut decides what is noticed
    else:
        assert computable
        for one in found:
            for fraction in one.fractions:
                freeze(one, fraction.fraction_id)


# ----------------------------------------------------------------------------- waiting


def test_a_missing_marker_is_waited_for_and_one_in_a_parent_counts(case: CaseFolder) -> None:
    marker = case.folder.parent / "_CASE_READY"
    marker.unlink()
    assert "ready marker _CASE_READY has not arrived" in waiting(case)
    (case.inbox / "_CASE_READY").touch()
    assert "ready marker" in waiting(case), "a marker in the inbox itself must not release all cases"
    (case.folder / "_CASE_READY").touch()
    assert seen(case).fractions[0].whole


def test_a_marker_in_a_room_folder_does_not_count(case: CaseFolder) -> None:
    room = case.inbox / "G2"
    room.mkdir()
    (case.folder.parent / "_CASE_READY").unlink()
    shutil.move(case.folder, room / "study")
    moved = CaseFolder(case.inbox, room / "study")
    (room / "_CASE_READY").touch()
    assert "ready marker" in waiting(moved)


def test_with_a_marker_the_same_rules_still_hold(case: CaseFolder) -> None:
    case.layer(0, 2).unlink()
    assert "beam 2: layer 2 has not arrived" in waiting(case)


@pytest.mark.parametrize(
    ("size", "suffix", "message"),
    [
        (0, "ptn", "beam 2: layer 3 has 0 bytes"),
        (17, "ptn", "beam 2: layer 3 has 17 bytes, no multiple of 16"),
        (0, "mgn", "beam 2: layer 3 (.mgn) has 0 bytes"),
        (16, "mgn", "beam 2: layer 3 (.mgn) has 16 bytes, no multiple of 14"),
    ],
)
def test_a_log_that_is_not_whole_records_is_waited_for(
    case: CaseFolder, size: int, suffix: str, message: str
) -> None:
    case.layer(0, 3, suffix).write_bytes(b"x" * size)
    assert message in waiting(case)


@pytest.mark.parametrize("name", ["PlanInfo.txt", "PlanRange.txt"])
def test_a_delivery_whose_description_is_still_arriving_is_waited_for(case: CaseFolder, name: str) -> None:
    path = case.deliveries[1] / name
    path.write_bytes(b"")
    assert f"delivery {path.parent.name}: {name} has 0 bytes" in waiting(case)
    path.unlink()
    assert f"delivery {path.parent.name}: {name} has not arrived" in waiting(case)


def test_a_folder_that_was_just_created_is_waited_for(case: CaseFolder) -> None:
    late = case.folder / (case.deliveries[1].name[:8] + "23000000")
    late.mkdir()
    assert "PlanInfo.txt has not arrived" in waiting(case, IntakeRules(session_gap_h=12))
    far = seen(case, IntakeRules(session_gap_h=1))
    assert [fraction.whole for fraction in far.fractions] == [True, False]
    assert far.fractions[1].fraction_id == late.name


def test_log_files_in_a_folder_without_a_timestamp_are_waited_for(
    case: CaseFolder,
) -> None:
    odd = case.folder / "odd"
    odd.mkdir()
    (odd / "01_x.ptn").write_bytes(b"")
    found = seen(case)
    assert "delivery odd: PlanInfo.txt has not arrived" in [w for f in found.fractions for w in f.waiting_for]


def test_a_case_without_a_plan_waits_for_it(case: CaseFolder) -> None:
    case.plan.unlink()
    found = seen(case)
    assert found.key is None
    assert found.waiting_for == ("no RT Ion Plan has arrived",)
    with pytest.raises(ValidationError, match="no fraction"):
        freeze(found, "x")


def test_a_case_without_deliveries_waits_for_them(case: CaseFolder) -> None:
    for delivery in case.deliveries:
        shutil.rmtree(delivery)
    assert "no delivery has arrived" in waiting(case)


def test_an_empty_dicom_file_is_waited_for(case: CaseFolder) -> None:
    case.doses[0].write_bytes(b"")
    assert f"{case.doses[0].name} has 0 bytes" in waiting(case)


def test_what_a_transfer_still_writes_is_not_looked_at(case: CaseFolder) -> None:
    log = case.layer(0, 1)
    log.rename(log.with_name(log.name + ".part"))
    assert "layer 1 has not arrived" in waiting(case)
    log.with_name(log.name + ".part").rename(log)
    shutil.copytree(case.folder, case.inbox / "x.extracting" / "study")
    assert list(find_case_folders(case.inbox, RULES)) == [case.folder]


def test_a_fraction_that_waits_cannot_be_frozen(case: CaseFolder) -> None:
    shutil.rmtree(case.deliveries[1])
    found = seen(case)
    with pytest.raises(ValidationError, match="beam 3 not delivered"):
        freeze(found, found.fractions[0].fraction_id)


# ----------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DICOM_PATIENT_ID,SYN00001", "DICOM_PATIENT_ID,OTHER", "PlanInfo"),
        ("DICOM_BEAM_NUMBER,3", "DICOM_BEAM_NUMBER,1", "no treatment beam of the plan (2, 3)"),
        ("DICOM_BEAM_NUMBER,3", "DICOM_BEAM_NUMBER,9", "no treatment beam of the plan (2, 3)"),
        ("DICOM_STUDY_INS_UID,", "DICOM_STUDY_INS_UID,9.", "of study 9."),
        ("START_LAYER_NUMBER", "START", "PlanInfo.txt: START_LAYER_NUMBER is missing"),
    ],
)
def test_a_delivery_that_contradicts_the_plan_refuses_the_case(
    case: CaseFolder, old: str, new: str, message: str
) -> None:
    case.edit_text(1, "PlanInfo.txt", old, new)
    assert message in refused(case)


def test_another_study_is_accepted_where_the_site_says_so(case: CaseFolder) -> None:
    case.edit_text(1, "PlanInfo.txt", "DICOM_STUDY_INS_UID,", "DICOM_STUDY_INS_UID,9.")
    assert seen(case, IntakeRules(match_study_uid=False)).fractions[0].whole


def test_another_patient_is_refused_without_naming_the_patient(case: CaseFolder) -> None:
    case.edit_text(1, "PlanInfo.txt", "SYN00001", "SECRET77")
    case.edit_text(1, "PlanRange.txt", "SYN00001", "SECRET77")
    message = refused(case)
    assert "is of another patient than the plan" in message
    assert "SECRET77" not in message


def test_another_energy_than_the_plans_is_refused(case: CaseFolder) -> None:
    path = case.deliveries[0] / "PlanRange.txt"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[2] = f"{float(cells[2]) + 0.2:.1f}"
    path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    assert "layer 1 has" in refused(case)


def test_a_layer_beyond_the_plan_is_refused(case: CaseFolder) -> None:
    delivery = case.deliveries[0]
    rows = (delivery / "PlanRange.txt").read_text().splitlines()
    cells = rows[-1].split(",")
    count = int(cells[1])
    cells[1], cells[9], cells[10] = str(count + 1), "x.ptn", "x.mgn"
    (delivery / "PlanRange.txt").write_text("\n".join([*rows, ",".join(cells)]))
    case.edit_text(0, "PlanInfo.txt", f"STOP_LAYER_NUMBER,{count}", f"STOP_LAYER_NUMBER,{count + 1}")
    assert f"layer {count + 1} was delivered, the plan has {count}" in refused(case)


def test_the_room_of_the_path_must_be_the_room_of_the_plan(case: CaseFolder) -> None:
    room = case.inbox / "G1"
    room.mkdir()
    shutil.move(case.folder.parent, room / "P1")
    moved = CaseFolder(case.inbox, room / "P1" / case.folder.name)
    assert "the folder lies in G1, the plan is for G2" in refused(moved)


def test_beams_of_different_rooms_are_refused(case: CaseFolder) -> None:
    def mix(plan) -> None:
        plan.IonBeamSequence[-1].TreatmentMachineName = "G1"

    case.edit_dicom(case.plan, mix)
    assert "different machines" in refused(case)


def test_a_damaged_image_is_refused_by_name(case: CaseFolder) -> None:
    victim = case.ct[0]
    content = victim.read_bytes()
    for cut in (100, 200, len(content) // 2, len(content) - 1):
        victim.write_bytes(content[:cut])
        assert victim.name in refused(case)


def test_a_ct_or_dose_of_another_patient_is_refused(case: CaseFolder) -> None:
    for path in case.ct:
        case.edit_dicom(path, lambda ds: setattr(ds, "PatientID", "OTHER"))
    message = refused(case)
    assert "more files" in message
    assert "is of another patient than the plan" in message


def test_two_doses_of_one_beam_are_refused_and_foreign_doses_only_noted(case: CaseFolder) -> None:
    twin = case.folder / "twin.dcm"
    shutil.copy(case.doses[0], twin)
    assert "two TPS doses" in refused(case)
    case.edit_dicom(
        twin, lambda ds: setattr(ds.ReferencedRTPlanSequence[0], "ReferencedSOPInstanceUID", "1.2.3")
    )
    assert "dose of another plan" in " ".join(seen(case).companions.warnings)


def test_doses_that_fit_nothing_are_noted(case: CaseFolder) -> None:
    beam_dose = next(path for path in case.doses if path.name == dict(seen(case).companions.beam_doses)[2])

    def other_beam(ds) -> None:
        group = ds.ReferencedRTPlanSequence[0].ReferencedFractionGroupSequence[0]
        group.ReferencedBeamSequence[0].ReferencedBeamNumber = 1

    copy = case.folder / "a.dcm"
    shutil.copy(beam_dose, copy)
    case.edit_dicom(copy, other_beam)
    shutil.copy(beam_dose, case.folder / "b.dcm")
    case.edit_dicom(case.folder / "b.dcm", lambda ds: setattr(ds, "DoseSummationType", "FRACTION"))
    found = seen(case)
    assert found.problems == ()
    assert "a.dcm is a dose of beam 1, no treatment beam" in found.companions.warnings
    assert any("b.dcm is the dose neither" in warning for warning in found.companions.warnings)


def test_two_ct_series_are_refused_and_a_foreign_frame_is_not_used(case: CaseFolder) -> None:
    other = case.folder / "other"
    other.mkdir()
    shutil.copy(case.ct[0], other / "CT.dcm")
    assert "same slice more than once" in refused(case)
    case.edit_dicom(other / "CT.dcm", lambda ds: setattr(ds, "SeriesInstanceUID", "1.2.3"))
    assert "2 CT series fit the plan" in refused(case)
    for path in case.ct:
        case.edit_dicom(path, lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"))
    found = seen(case)
    assert found.companions.ct == ()
    assert "another frame of reference" in found.companions.warnings[0]


def test_two_sums_of_the_plan_are_refused(case: CaseFolder) -> None:
    total = case.folder / str(seen(case).companions.plan_dose)
    shutil.copy(total, case.folder / "sum2.dcm")
    assert "two TPS doses of the whole plan" in refused(case)


def test_a_link_out_of_the_case_is_refused_by_name(case: CaseFolder, tmp_path: Path) -> None:
    log = case.layer(0, 2)
    outside = tmp_path / "outside.ptn"
    log.rename(outside)
    log.symlink_to(outside)
    assert f"{log.name} is a link out of the case folder" in refused(case)
    log.unlink()
    shutil.move(outside, case.folder / "kept.ptn")
    log.symlink_to(case.folder / "kept.ptn")
    assert f"{log.name} is a link: copy the file itself" in refused(case)


def test_a_link_to_a_folder_outside_is_refused_and_never_entered(case: CaseFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (case.folder / "more").symlink_to(tmp_path / "secret")
    assert "more is a link out of the case folder" in refused(case)
    (case.inbox / "way-out").symlink_to(tmp_path)
    assert list(find_case_folders(case.inbox, RULES)) == [case.folder]


def test_a_name_that_is_no_utf_8_is_refused_in_plain_ascii(case: CaseFolder) -> None:
    (case.folder / os.fsdecode(b"\xff\xfe.dcm")).write_bytes(b"x")
    message = refused(case)
    assert "is not UTF-8" in message
    assert message.isascii()
    bad = case.inbox / os.fsdecode(b"bad\xff")
    shutil.copytree(case.folder, bad)
    with pytest.raises(ValidationError, match="not UTF-8"):
        look(bad, case.inbox, RULES)


def test_sockets_and_pipes_in_a_case_are_passed_over(case: CaseFolder) -> None:
    os.mkfifo(case.folder / "pipe.dcm")
    assert seen(case).fractions[0].whole


# ---------------------------------------------------------------------- several plans


def replanned(one: CaseFolder) -> Path:
    """A second plan in the same folder: same study, other UID, and as it is, the same beams."""
    second = one.folder / "RP.second.dcm"
    shutil.copy(one.plan, second)

    def new_uid(ds) -> None:
        ds.SOPInstanceUID = "1.2.3.4"
        ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"

    one.edit_dicom(second, new_uid)
    return second


def test_each_of_several_plans_is_a_case_and_a_delivery_that_fits_both_is_refused(case: CaseFolder) -> None:
    replanned(case)
    found = looks(case.folder, case.inbox, RULES)
    assert len({one.key for one in found}) == 2
    assert all("fits several plans" in one.problems[0] for one in found)
    assert "say which is meant" in seen(case).problems[0]
    assert seen(case, plan_uid="1.2.3.4").plan_uid == "1.2.3.4"
    with pytest.raises(ValidationError, match="no plan 9"):
        seen(case, plan_uid="9")


def test_deliveries_go_to_the_plan_they_fit(case: CaseFolder) -> None:
    second = replanned(case)
    case.edit_dicom(second, lambda ds: setattr(ds, "StudyInstanceUID", "1.2.9"))
    first, other = (seen(case, plan_uid=one.plan_uid) for one in looks(case.folder, case.inbox, RULES))
    whole, empty = (first, other) if first.fractions else (other, first)
    assert whole.fractions[0].whole
    assert empty.waiting_for == ("no delivery has arrived",)
    case.edit_text(0, "PlanInfo.txt", "DICOM_STUDY_INS_UID,", "DICOM_STUDY_INS_UID,7.")
    assert "fits none of the 2 plans" in seen(case, plan_uid="1.2.3.4").problems[0]


def test_the_same_plan_twice_is_one_plan_unless_the_bytes_differ(case: CaseFolder) -> None:
    twin = case.folder / "copy.dcm"
    shutil.copy(case.plan, twin)
    assert seen(case).fractions[0].whole
    case.edit_dicom(twin, lambda ds: setattr(ds, "RTPlanLabel", "changed"))
    assert "different plans under the same UID" in refused(case)


def test_a_plan_one_folder_down_is_found(case: CaseFolder) -> None:
    (case.folder / "dicom").mkdir()
    case.plan.rename(case.folder / "dicom" / "plan")
    found = seen(case)
    assert found.plan == "dicom/plan"
    assert found.fractions[0].whole


# ------------------------------------------------------------------------------ finding


@pytest.mark.parametrize(
    "layout", ["case", "G1/case", "patient/case", "G2/patient/study", "2026/G2/patient/study", "G2/G1/case"]
)
def test_every_layout_is_found_and_no_room_or_inbox_is_a_case(
    case: CaseFolder, layout: str, tmp_path: Path
) -> None:
    inbox = tmp_path / "other"
    target = inbox / layout
    target.parent.mkdir(parents=True)
    shutil.copytree(case.folder, target)
    assert list(find_case_folders(inbox, RULES)) == [target]
    assert is_case_folder(target, RULES)
    assert list(find_case_folders(target, RULES)) == [], "the root itself is never a case"
    if layout.startswith("G"):
        shutil.copytree(
            case.deliveries[0], inbox / layout.split("/", maxsplit=1)[0] / case.deliveries[0].name
        )
        assert list(find_case_folders(inbox, RULES)) == [target]


def test_cases_deeper_than_the_site_says_are_not_looked_for(case: CaseFolder) -> None:
    assert list(find_case_folders(case.inbox, IntakeRules(max_depth=1))) == []
    assert list(find_case_folders(case.inbox, IntakeRules(max_depth=2))) == [case.folder]


def test_a_stray_plan_above_a_case_does_not_hide_it(case: CaseFolder) -> None:
    shutil.copy(case.plan, case.folder.parent / "RP.dcm")
    assert list(find_case_folders(case.inbox, RULES)) == [case.folder]
    shutil.rmtree(case.folder)
    assert list(find_case_folders(case.inbox, RULES)) == [case.folder.parent]


def test_a_patient_whose_id_looks_like_a_time_is_no_delivery(case: CaseFolder) -> None:
    patient = case.inbox / "2026010112000000"
    shutil.move(case.folder.parent, patient)
    assert list(find_case_folders(case.inbox, RULES)) == [patient / case.folder.name]


def test_an_inbox_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the inbox cannot be read"):
        list(find_case_folders(tmp_path / "missing", RULES))


def test_a_folder_outside_the_inbox_is_refused(case: CaseFolder, tmp_path: Path) -> None:
    (case.inbox / "link").symlink_to(tmp_path)
    for bad in (tmp_path, case.inbox, case.inbox / "nothing", case.inbox / "link"):
        with pytest.raises(ValidationError, match="is no case folder"):
            look(bad, case.inbox, RULES)


@pytest.mark.parametrize(
    "bad", [{"ready_marker": "a/b"}, {"settle_s": -1}, {"session_gap_h": 0}, {"unknown": 1}]
)
def test_impossible_rules_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        IntakeRules.model_validate(bad)


# ----------------------------------------------------------------------------- settling


def test_two_looks_at_an_unchanged_case_settle_it_and_any_change_unsettles(case: CaseFolder) -> None:
    first = seen(case)
    assert is_settled(first, seen(case))
    assert first.signature == signature_of(case.folder, case.inbox, RULES)
    log = case.layer(0, 1)
    with log.open("ab") as stream:
        stream.write(b"0" * 16)
    second = seen(case)
    assert not is_settled(first, second)
    os.utime(log, ns=(1, 1))
    assert not is_settled(second, seen(case))
    (case.folder.parent / "_CASE_READY").unlink()
    assert signature_of(case.folder, case.inbox, RULES) != second.signature


# ----------------------------------------------------------------------------- freezing


def test_a_file_that_changes_between_look_and_freeze_is_noticed(case: CaseFolder) -> None:
    found = seen(case)
    fraction_id = found.fractions[0].fraction_id
    with pytest.raises(ValidationError, match="has no fraction"):
        freeze(found, "2000010100000000")
    log = case.layer(0, 1)
    content = log.read_bytes()
    log.write_bytes(content[:-1])
    with pytest.raises(ValidationError, match="changed while"):
        freeze(found, fraction_id)
    log.unlink()
    with pytest.raises(ValidationError, match="cannot be read"):
        freeze(found, fraction_id)
    log.write_bytes(content)
    info = case.deliveries[0] / "PlanInfo.txt"
    rows = info.read_text()
    info.write_text(rows.replace("START_LAYER_NUMBER,1", "START_LAYER_NUMBER,2"))
    with pytest.raises(ValidationError, match="changed while"):
        freeze(found, fraction_id)
    info.write_text(rows)
    case.edit_dicom(case.plan, lambda ds: setattr(ds, "PatientID", "X"))
    with pytest.raises(ValidationError, match="changed while"):
        freeze(found, fraction_id)


def test_a_file_that_is_written_while_it_is_hashed_is_noticed(
    case: CaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mqi.intake.freezing as freezing

    real = freezing.fact_of

    def slow(path: Path, root: Path):
        fact = real(path, root)
        with path.open("ab") as stream:
            stream.write(b"late")
        return fact

    monkeypatch.setattr(freezing, "fact_of", slow)
    found = seen(case)
    with pytest.raises(ValidationError, match="changed while"):
        freeze(found, found.fractions[0].fraction_id)


# ----------------------------------------------------------------------------- grouping


def test_a_repeated_beam_within_the_session_asks_a_person(case: CaseFolder) -> None:
    first = case.deliveries[0].name
    again = case.copy_delivery(0, f"{first[:8]}2200{first[12:]}").name
    assert f"beam 2 was delivered twice ({first}, {again}): choose with deliveries=[...]" in waiting(case)
    second = case.deliveries[1].name
    chosen = seen(case, choose=[again, second]).fractions
    assert len(chosen) == 1
    assert chosen[0].whole
    assert chosen[0].fraction_id == first, "the choice settles the fraction that asked"
    manifest = freeze(seen(case, choose=[again, second]), first)
    assert [d.id for d in manifest.beam(2).deliveries] == [again]
    both = seen(case, choose=[first, again, second]).fractions[0]
    assert both.whole
    assert "delivered more than once, all of it is counted" in " ".join(both.warnings)
    assert "no readable delivery nobody" in seen(case, choose=["nobody"]).problems[0]


def test_a_repeated_beam_after_the_pause_begins_the_next_fraction(case: CaseFolder) -> None:
    shutil.rmtree(case.deliveries[1])
    case.copy_delivery(0, "2027010109000000")
    found = seen(case)
    assert [f.number for f in found.fractions] == [1, 2]
    assert all(f.waiting_for == ("beam 3 not delivered",) for f in found.fractions)


BEAMS = {2: 3, 3: 2}
START = datetime(2026, 1, 1, 20)


def delivery(minute: float, beam: int, first: int = 1, last: int | None = None) -> Delivery:
    at = START + timedelta(minutes=minute)
    return Delivery(
        id=f"{at:%Y%m%d%H%M%S}00",
        folder="x",
        patient_id="P",
        study_uid="1",
        beam_number=beam,
        irradiated_at=at,
        start_layer=first,
        stop_layer=last or BEAMS[beam],
        layers=(),
    )


def grouped(*deliveries: Delivery, arriving: tuple[Arriving, ...] = (), gap_h: float = 4.0):
    return fractions_of(deliveries, arriving, layer_counts=BEAMS, gap_h=gap_h, lacking={})


def test_interrupted_delivery_and_its_resumption_make_one_beam() -> None:
    (fraction,) = grouped(delivery(0, 2, 1, 2), delivery(5, 2, 2, 3), delivery(9, 3))
    assert fraction.whole
    assert "beam 2 was delivered in 2 parts" in fraction.warnings[0]
    assert "layer 2 delivered more than once" in fraction.warnings[1]
    (exact,) = grouped(delivery(0, 2, 1, 2), delivery(5, 2, 3, 3), delivery(9, 3))
    assert exact.whole
    assert len(exact.warnings) == 1


def test_an_interruption_that_was_never_resumed_waits_for_its_layers() -> None:
    (fraction,) = grouped(delivery(0, 2, 1, 1), delivery(9, 3))
    assert fraction.waiting_for == ("beam 2: layers 2-3 not delivered",)


def test_an_aborted_beam_that_was_begun_again_asks_a_person() -> None:
    (fraction,) = grouped(delivery(0, 2, 1, 2), delivery(5, 2), delivery(9, 3))
    assert not fraction.whole
    assert any("layers of beam 2 were delivered twice" in text for text in fraction.waiting_for)


def test_an_aborted_fraction_is_not_completed_with_the_next_days_beam() -> None:
    day = 24 * 60
    first, second = grouped(delivery(0, 2, 1, 2), delivery(day, 2), delivery(day + 9, 3))
    assert not first.whole
    assert second.whole
    assert second.number == 2


def test_a_slow_treatment_is_one_fraction_and_three_repeats_are_counted() -> None:
    (slow,) = grouped(delivery(0, 2), delivery(59 + 60 * 5, 3))
    assert slow.whole
    (thrice,) = grouped(delivery(0, 2), delivery(5, 2), delivery(9, 2), delivery(12, 3))
    assert any("delivered 3 times" in text for text in thrice.waiting_for)


def test_a_half_arrived_delivery_holds_back_only_the_fraction_it_may_belong_to() -> None:
    day = 24 * 60
    whole = (delivery(0, 2), delivery(9, 3), delivery(day, 2), delivery(day + 9, 3))
    late = Arriving(id="late", at=START + timedelta(minutes=day + 20), waiting_for="no PlanInfo.txt")
    first, second = grouped(*whole, arriving=(late,))
    assert first.whole
    assert second.waiting_for == ("delivery late: no PlanInfo.txt",)
    third = grouped(*whole, arriving=(late.model_copy(update={"at": START + timedelta(days=9)}),))[2]
    assert third.fraction_id == "late"
    assert not third.whole


def test_a_choice_over_several_fractions_is_a_fraction_of_its_own() -> None:
    day = 24 * 60
    every = (delivery(0, 2), delivery(9, 3), delivery(day, 2), delivery(day + 9, 3))
    chosen = chosen_fraction(every, [every[1].id, every[2].id], layer_counts=BEAMS, gap_h=4, lacking={})
    assert chosen.whole
    assert chosen.fraction_id == every[1].id


def test_layers_are_written_as_a_person_would() -> None:
    assert layer_spans({4}) == "layer 4"
    assert layer_spans({1, 2, 3, 7, 9, 10}) == "layers 1-3, 7, 9-10"


histories = st.lists(
    st.tuples(st.integers(0, 4000), st.sampled_from([2, 3]), st.integers(1, 3), st.integers(1, 3)),
    max_size=12,
    unique_by=lambda item: item[0],
)


@given(histories, st.randoms(use_true_random=False), st.sampled_from([0.5, 4.0, 24.0]))
@settings(max_examples=150, deadline=None)
def test_any_order_of_arrival_gives_the_same_fractions(
    raw: list[tuple[int, int, int, int]], dice: random.Random, gap_h: float
) -> None:
    every = [
        delivery(minute, beam, min(a, b, BEAMS[beam]), min(max(a, b), BEAMS[beam]))
        for minute, beam, a, b in raw
    ]
    expected = grouped(*every, gap_h=gap_h)
    shuffled = list(every)
    dice.shuffle(shuffled)
    assert grouped(*shuffled, gap_h=gap_h) == expected
    taken = [d.id for fraction in expected for d in fraction.deliveries]
    assert sorted(taken) == sorted(d.id for d in every), "each delivery stands in exactly one fraction"
    for fraction in expected:
        assert fraction.whole == (not fraction.waiting_for)
        assert fraction.fraction_id == fraction.deliveries[0].id
        for beam, count in BEAMS.items():
            layers = [
                n
                for d in fraction.deliveries
                if d.beam_number == beam
                for n in range(d.start_layer, d.stop_layer + 1)
            ]
            if fraction.whole:
                assert set(layers) == set(range(1, count + 1))


# ------------------------------------------------------------------------------- hostile


@given(st.binary(max_size=400), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_no_bytes_in_a_dicom_file_crash_a_look(
    tmp_path_factory, pristine: SyntheticCase, noise: bytes, at: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    source = pristine.doses[None].read_bytes()
    position = at % len(source)
    (folder / "RD.dcm").write_bytes(source[:position] + noise + source[position + len(noise) :])
    (folder / "IM.dcm").write_bytes(b"\0" * 128 + b"DICM" + noise)
    from mqi.intake.dicom import headers_of
    from mqi.intake.rules import files_below

    for header in headers_of(folder, files_below(folder, RULES)):
        assert header.damage or header.sop_class


def test_names_that_a_shell_would_run_are_only_names(case: CaseFolder) -> None:
    for name in ("$(touch pwned)", "a b;c", "-rf", "환자", "x\ny"):
        target = case.inbox / name
        shutil.copytree(case.folder, target / "study")
        found = look(target / "study", case.inbox, NO_MARKER)
        freeze(found, found.fractions[0].fraction_id)
        shutil.rmtree(target)


def test_what_may_not_be_read_is_passed_over_or_refused_by_name(
    case: CaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user sees a folder that this account may not open (the tests may run as root)."""
    real = os.scandir
    closed = {str(case.deliveries[1])}

    def scandir(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "beam 3 not delivered" in waiting(case)
    closed.add(str(case.folder))
    assert list(find_case_folders(case.inbox, RULES)) == []
    closed.clear()
    from mqi.intake import dicom

    dicom._header.cache_clear()
    real_open = Path.open

    def deny(path: Path, *mode: str, **options):
        if path.name == case.doses[0].name:
            raise PermissionError(13, "Permission denied")
        return real_open(path, *mode, **options)

    monkeypatch.setattr(Path, "open", deny)
    assert f"{case.doses[0].name} cannot be read (Permission denied)" in refused(case)
    dicom._header.cache_clear()


def test_log_files_that_only_have_a_bad_timestamp_are_no_delivery_by_name(case: CaseFolder) -> None:
    (case.folder / "2026139901000000").mkdir()
    (case.folder / "notes").mkdir()
    assert seen(case).fractions[0].whole
    case.edit_dicom(case.ct[0], lambda ds: delattr(ds, "SOPClassUID"))
    assert "does not say what it is" in refused(case)
