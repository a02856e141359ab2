"""The command line: sentences and exit codes for a person, JSON for a program, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mqi.__main__ import main
from mqi.synthesize import SPOILS
from tests.unit.case_folders import CaseFolder, case_fixture, pristine_fixture  # noqa: F401


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main([str(one) for one in argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return status, captured.out, captured.err


def test_inspect_says_what_is_there_and_that_it_is_whole(
    case: CaseFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "inspect", case.folder)
    assert status == 0
    assert "fraction 1" in out
    assert "whole" in out
    assert "24 CT slices, TPS doses of 2 beams and of the plan" in out


def test_inspect_says_what_is_missing_and_fails(case: CaseFolder, capsys: pytest.CaptureFixture[str]) -> None:
    case.layer(0, 2).write_bytes(b"")
    (case.folder.parent / "_CASE_READY").unlink()
    status, out, _ = run(capsys, "inspect", case.inbox)
    assert status == 1
    assert "waits: beam 2: layer 2 has 0 bytes" in out
    assert "waits: ready marker _CASE_READY has not arrived" in out
    assert "marker" not in run(capsys, "inspect", case.inbox, "--no-marker")[1]


def test_inspect_says_why_a_case_is_refused(case: CaseFolder, capsys: pytest.CaptureFixture[str]) -> None:
    case.edit_text(0, "PlanInfo.txt", "DICOM_BEAM_NUMBER,2", "DICOM_BEAM_NUMBER,1")
    status, out, _ = run(capsys, "inspect", case.folder)
    assert status == 1
    assert "REFUSED: " in out
    assert "refused" in out
    case.plan.unlink()
    assert "unknown case" in run(capsys, "inspect", case.folder)[1]


def test_inspect_gives_json(case: CaseFolder, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "inspect", case.folder, "--json", "--inbox", case.inbox)
    assert status == 0
    (one,) = json.loads(out)["cases"]
    assert one["fractions"][0]["whole"] is True


def test_inspect_of_a_chosen_plan_and_deliveries(
    case: CaseFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "inspect", case.folder, "--plan", "1.2.3")
    assert (status, out) == (1, "")
    assert "no plan 1.2.3" in err
    ids = [path.name for path in case.deliveries]
    assert run(capsys, "inspect", case.folder, "--choose", *ids)[0] == 0
    status, out, _ = run(capsys, "inspect", case.folder, "--choose", ids[0])
    assert status == 1
    assert "beam 3 not delivered" in out


@pytest.mark.parametrize("where", ["missing", "empty", "file"])
def test_what_is_no_case_is_said_so(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    status, out, err = run(capsys, "inspect", tmp_path / where)
    assert (status, out) == (1, "")
    assert err.startswith("ValidationError: ")
    status, out, err = run(capsys, "inspect", tmp_path / where, "--json")
    assert status == 1
    assert json.loads(out)["kind"] == "ValidationError"
    assert err == ""


def test_interpret_writes_spots_and_an_account_for_each_beam(
    case: CaseFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, text, err = run(capsys, "interpret", case.folder, out)
    assert status == 0, err
    assert "planned" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "beam_2_account.json",
        "beam_2_spots.npz",
        "beam_3_account.json",
        "beam_3_spots.npz",
    ]
    status, text, _ = run(capsys, "interpret", case.folder, out, "--json")
    assert [account["beam_number"] for account in json.loads(text)["accounts"]] == [2, 3]


def test_interpret_takes_the_folder_above_a_case_unless_it_holds_several(
    case: CaseFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    above = tmp_path / "above"
    shutil.copytree(case.folder, above / "one")
    (above / "_CASE_READY").touch()
    assert run(capsys, "interpret", above, tmp_path / "out")[0] == 0
    shutil.copytree(case.folder, above / "two")
    status, _, err = run(capsys, "interpret", above, tmp_path / "out")
    assert status == 1
    assert "holds 2 cases" in err
    assert str(above / "two") in err
    (tmp_path / "empty").mkdir()
    status, _, err = run(capsys, "interpret", tmp_path / "empty", tmp_path / "out")
    assert status == 1
    assert "holds no case" in err


def test_interpret_refuses_what_is_not_whole_and_asks_which_fraction(
    case: CaseFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 1):
        case.copy_delivery(index, f"20270101090{index}0000")
    status, _, err = run(capsys, "interpret", case.folder, tmp_path / "out")
    assert status == 1
    assert "2 fractions" in err
    assert "--fraction" in err
    chosen = run(capsys, "interpret", case.folder, tmp_path / "out", "--fraction", "2027010109000000")
    assert chosen[0] == 0
    for delivery in case.deliveries[1:]:
        shutil.rmtree(delivery)
    status, _, err = run(capsys, "interpret", case.folder, tmp_path / "out")
    assert status == 1
    assert "beam 3 not delivered" in err


def test_synthesize_writes_a_case_that_inspect_finds_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "synthesize", tmp_path / "inbox", "--small", "--seed", 3, "--room", "G1")
    assert status == 0
    assert "python3 -m mqi inspect" in out
    assert run(capsys, "inspect", tmp_path / "inbox")[0] == 0
    status, _, err = run(capsys, "synthesize", tmp_path / "inbox", "--small", "--seed", 3, "--room", "G1")
    assert status == 1
    assert "ConfigurationError" in err


def test_synthesize_lists_its_spoils_and_refuses_unknown_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "synthesize", "--list-spoils")
    assert status == 0
    assert all(name in out for name in SPOILS)
    assert set(json.loads(run(capsys, "synthesize", "--list-spoils", "--json")[1])["spoils"]) == set(SPOILS)
    assert run(capsys, "synthesize", tmp_path, "--spoil", "nonsense", "--small")[0] == 1
    assert "no folder was given" in run(capsys, "synthesize")[2]
    assert run(capsys, "synthesize", tmp_path, "--patient-id", "a/b")[0] == 1


def test_gamma_of_a_dose_with_itself_passes_and_with_another_fails(
    case: CaseFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = case.doses[:2]
    status, out, _ = run(capsys, "gamma", first, first)
    assert status == 0
    assert "100.00 %" in out
    status, out, _ = run(capsys, "gamma", first, second, "--json", "--local")
    assert status == 1
    assert json.loads(out)["passed"] is False
    case.edit_dicom(second, lambda ds: setattr(ds, "PatientID", "X"))
    assert "different patients" in run(capsys, "gamma", first, second)[1]
    case.edit_dicom(second, lambda ds: setattr(ds, "PixelData", bytes(len(ds.PixelData))))
    assert "not evaluable" in run(capsys, "gamma", second, first)[1]


def test_gamma_refuses_impossible_criteria_and_files(
    case: CaseFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "gamma", case.doses[0], case.doses[0], "--dose-percent", "-1")
    assert status == 1
    assert "dose_percent" in err
    assert run(capsys, "gamma", case.plan, case.doses[0])[0] == 1
    assert run(capsys, "gamma", tmp_path / "none.dcm", case.doses[0])[0] == 1
    assert run(capsys, "gamma", tmp_path / "none.dcm", case.doses[0], "--json")[0] == 1


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["inspect"], ["gamma", "one"], ["inspect", "x", "--marker"]]
)
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "interpret", "synthesize", "gamma"])
def test_help_explains_every_command_and_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert "--json" in out
    assert len(out.splitlines()) > 10


def test_a_marker_that_is_no_name_is_a_configuration_error(
    case: CaseFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "inspect", case.folder, "--marker", "a/b")
    assert status == 1
    assert "no file name" in err


def test_the_real_program_runs_and_prints_hostile_names_harmlessly(case: CaseFolder, tmp_path: Path) -> None:
    nasty = tmp_path / os.fsdecode(b"inbox\x1b[31m\xff") / "P"
    shutil.copytree(case.folder, nasty)
    done = subprocess.run(
        [sys.executable, "-m", "mqi", "inspect", str(nasty), "--no-marker"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 1
    assert b"not UTF-8" in done.stderr or b"not UTF-8" in done.stdout
    assert b"\x1b" not in done.stderr + done.stdout
    assert b"Traceback" not in done.stderr
