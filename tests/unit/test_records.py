"""Binary records: exact layouts, and no damaged file that passes."""

from __future__ import annotations

import errno
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi.errors import ResourceError, ValidationError
from mqi.log.records import cannot_read, read_mgn, read_ptn


def test_a_ptn_row_is_eight_big_endian_words(tmp_path: Path) -> None:
    path = tmp_path / "a.ptn"
    rows = [(65200, 100, 0, 0, 44, 43, 7, 0x0001), (24580, 32772, 640, 815, 4250, 4246, 7, 0xC001)]
    path.write_bytes(b"".join(struct.pack(">8H", *row) for row in rows))
    read = read_ptn(path)
    assert read.dtype == np.uint16
    assert [tuple(row) for row in read.tolist()] == rows


def test_an_mgn_record_is_time_magnets_presets_and_flag(tmp_path: Path) -> None:
    path = tmp_path / "a.mgn"
    records = [(0, 1, 2, 3, 4, 0), (70_000, 5, 6, 7, 8, 1), (82_000, 9, 10, 11, 12, 0)]
    path.write_bytes(b"".join(struct.pack(">IHHHHH", *record) for record in records))
    read = read_mgn(path)
    assert [tuple(record) for record in read.tolist()] == records
    assert read["time_us"].tolist() == [0, 70_000, 82_000]


@pytest.mark.parametrize(("read", "unit"), [(read_ptn, 16), (read_mgn, 14)])
def test_a_file_that_is_no_whole_number_of_records_is_refused(
    tmp_path: Path, read: object, unit: int
) -> None:
    path = tmp_path / "log"
    for size in (1, unit - 1, 4 * unit + 1, 5 * unit - 1):
        path.write_bytes(bytes(size))
        with pytest.raises(ValidationError, match=f"{size} bytes are no whole number") as caught:
            read(path)
        assert caught.value.path == path
    path.write_bytes(b"")
    with pytest.raises(ValidationError, match="the log is empty"):
        read(path)


@pytest.mark.parametrize("read", [read_ptn, read_mgn])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, read: object) -> None:
    with pytest.raises(ValidationError, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(ValidationError, match="cannot be read"):
        read(tmp_path)


def test_a_failing_disk_is_tried_again_and_a_missing_file_is_not() -> None:
    assert isinstance(cannot_read(Path("a"), OSError(errno.EIO, "I/O error")), ResourceError)
    assert isinstance(cannot_read(Path("a"), PermissionError(errno.EACCES, "denied")), ValidationError)


def test_a_planned_layer_without_a_spot_or_with_time_backwards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mgn"
    path.write_bytes(bytes(28))
    with pytest.raises(ValidationError, match="2 records"):
        read_mgn(path)
    path.write_bytes(b"".join(struct.pack(">IHHHHH", time, 0, 0, 0, 0, 0) for time in (0, 9, 8)))
    with pytest.raises(ValidationError, match="backwards at record 2"):
        read_mgn(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(content)
        for read, unit in ((read_ptn, 16), (read_mgn, 14)):
            try:
                assert len(read(path)) * unit == len(content) > 0
            except ValidationError as error:
                assert error.path == path
