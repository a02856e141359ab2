"""Calibration sets: complete, exact, named by their content."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqi.errors import ConfigurationError, ValidationError
from mqi.log.calibration import builtin_calibration, read_calibration

G2_TEXT = (resources.files("mqi.log") / "calibrations" / "G2.txt").read_text()


def written(folder: Path, text: str) -> Path:
    path = folder / "site.txt"
    path.write_text(text)
    return path


def test_the_rooms_have_the_vendors_figures() -> None:
    g1, g2 = builtin_calibration("G1"), builtin_calibration("G2")
    assert (g1.x_pos_offset, g1.y_pos_offset, g1.mu_per_count) == (16384, 16384, 2.1125e-8)
    assert (g2.x_pos_offset, g2.y_pos_offset, g2.mu_per_count) == (24580, 32772, 2.142e-8)
    assert (g1.sad_mm, g2.sad_mm) == ((2696, 2180), (2597, 2223))
    assert (g1.time_gain_ms, g2.time_gain_ms) == (0.0600745, 0.06)
    assert (g1.dose_divisor, g2.dose_divisor) == (1, 1)


def test_raw_registers_become_millimetres() -> None:
    g2 = builtin_calibration("G2")
    raw = np.array([0, 24580, 65535], dtype=np.uint16)
    np.testing.assert_allclose(g2.x_mm(raw), [-24580 * 0.00726, 0.0, 40955 * 0.00726])
    np.testing.assert_allclose(g2.y_mm([32772, 32872]), [0.0, 0.71411])
    np.testing.assert_allclose(g2.preset_x_mm([32768, 32868]), [0.0, 0.5445])
    np.testing.assert_allclose(g2.preset_y_mm([32768, 32668]), [0.0, -0.71411])
    assert float(g2.x_mm(24680)) == pytest.approx(0.726)


def test_one_mu_is_the_measured_number_of_counts_at_range_code_2() -> None:
    g2 = builtin_calibration("G2")
    assert 1 / g2.mu_per_count == pytest.approx(4.66e7, rel=0.003)
    assert g2.corrected_counts([46_685_341], 2)[0] * g2.mu_per_count == pytest.approx(1.0)


@pytest.mark.parametrize(("code", "current_na"), [(1, 160), (2, 470), (3, 1400), (4, 4200), (5, 12600)])
def test_a_range_code_scales_by_its_full_scale_current(code: int, current_na: float) -> None:
    g2 = builtin_calibration("G2")
    assert g2.range_factor(code) == pytest.approx(current_na / 470, rel=1e-12)
    assert g2.corrected_counts(np.array([1000], dtype=np.uint16), code)[0] == pytest.approx(
        1000 * current_na / 470
    )


@pytest.mark.parametrize("code", [0, 6, -1, 99])
def test_an_unknown_range_code_is_refused(code: int) -> None:
    with pytest.raises(ValidationError, match=f"range code {code} is unknown"):
        builtin_calibration("G2").range_factor(code)


def test_the_dose_divisor_divides(tmp_path: Path) -> None:
    path = written(tmp_path, G2_TEXT.replace("DOSE_DIVISOR    1", "DOSE_DIVISOR 10"))
    assert read_calibration(path).corrected_counts([500], 2)[0] == 50.0


def test_the_hash_is_of_the_values_not_of_their_spelling(tmp_path: Path) -> None:
    lines = [line for line in G2_TEXT.splitlines() if line and not line.startswith("#")]
    plain = "\n".join(reversed(lines)).replace("0.0072600", "7.26e-3 # mm").replace(" ", "\t")
    again = read_calibration(written(tmp_path, plain))
    assert again == builtin_calibration("G2")
    assert again.sha256 == builtin_calibration("G2").sha256
    assert len(again.sha256) == 64


@pytest.mark.parametrize(
    ("old", "new"), [("24580", "24576"), ("VERSION         1", "VERSION 2"), ("2.142e-8", "2.12e-8")]
)
def test_the_hash_changes_with_any_value(tmp_path: Path, old: str, new: str) -> None:
    assert old in G2_TEXT
    lines = [line if line.startswith("#") else line.replace(old, new) for line in G2_TEXT.splitlines()]
    changed = read_calibration(written(tmp_path, "\n".join(lines)))
    assert changed.sha256 != builtin_calibration("G2").sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("TIMEGAIN ", "TIMEGAIM "), r"line \d+: unknown key 'TIMEGAIM'"),
        (("MU_PER_COUNT    2.142e-8", ""), "missing: MU_PER_COUNT"),
        (("RANGE1 ", "RANGE2 "), r"line \d+: RANGE2 is given again \(first on line \d+\)"),
        (("2.142e-8\n", "2.142e-8 MU\n"), r"line \d+: expected one key and one value, found 3"),
        (("MU_PER_COUNT    2.142e-8", "MU_PER_COUNT many"), "MU_PER_COUNT must be a number, not 'many'"),
        (("MU_PER_COUNT    2.142e-8", "MU_PER_COUNT nan"), "must be a number"),
        (("MU_PER_COUNT    2.142e-8", "MU_PER_COUNT -1"), r"line \d+: MU_PER_COUNT cannot be '-1'"),
        (("SADY            2223", "SADY 0"), r"line \d+: SADY cannot be '0'"),
        (("RANGE5          26", "RANGE5 -26"), "RANGE5 cannot be"),
        (("XPOSOFFSET      24580", "XPOSOFFSET 70000"), "XPOSOFFSET cannot be '70000'"),
        (("NAME            G2", "NAME G3"), "NAME cannot be 'G3'"),
        (("VERSION         1", "VERSION a/b"), "VERSION cannot be 'a/b'"),
    ],
)
def test_a_set_that_is_not_exactly_right_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in G2_TEXT
    path = written(tmp_path, G2_TEXT.replace(*change))
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_calibration(path)
    assert caught.value.path == path


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_calibration(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_calibration(tmp_path / "binary")


@pytest.mark.parametrize("room", ["", "G3", "../G2", "g2"])
def test_only_the_two_rooms_are_built_in(room: str) -> None:
    with pytest.raises(ConfigurationError, match="no built-in"):
        builtin_calibration(room)


@settings(max_examples=60)
@given(st.binary(max_size=300), st.integers(0, len(G2_TEXT)), st.integers(0, 40))
def test_any_damage_gives_a_set_or_an_error(content: bytes, at: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.txt"
        whole = G2_TEXT.encode()
        path.write_bytes(whole[:at] + content + whole[at + cut :])
        try:
            assert read_calibration(path).name in {"G1", "G2"}
        except ConfigurationError as error:
            assert error.path == path
