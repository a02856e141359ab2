"""Small cases made by hand from the byte layouts, not by the synthesizer: the two check each other."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mqi.case import BeamManifest
from mqi.log.planinfo import read_delivery
from mqi.plan import IonPlan, PlanBeam, PlanLayer

PATIENT = "QA0001"
STUDY = "1.2.826.0.1.3680043.10.1"
ROW_MS = 0.06  # G2
MU_PER_COUNT = 2.142e-8  # G2
IDLE, PLAN, ACTUAL, ON = 0x0001, 0x8001, 0x4001, 0xC001
PARKED = (65200, 100)


# ------------------------------------------------------------------------------------------- the plan


def line_layer(number: int = 1, energy: float = 100.0, spots: int = 13, mu: float = 0.12) -> PlanLayer:
    """A serpentine of 6 mm steps, four to a line, with equal MU on each step and none on the first spot."""
    index = np.arange(spots)
    along, line = index % 4, index // 4
    x = 6.0 * np.where(line % 2 == 0, along, 3 - along) - 9.0
    positions = np.stack([x, 6.0 * line - 9.0], axis=1)
    weights = np.full(spots, mu / (spots - 1))
    weights[0] = 0.0
    return PlanLayer(number, energy, positions.astype("<f4").astype(float), weights)


def spot_layer(number: int = 1, energy: float = 100.0, spots: int = 5) -> PlanLayer:
    """Spots in a row, 10 mm apart, with MU 1 : 2 : 3 ..."""
    x = 10.0 * np.arange(spots) - 20.0
    return PlanLayer(number, energy, np.stack([x, 0 * x + 5.0], axis=1), 0.01 * (1.0 + np.arange(spots)))


def plan_beam(layers: Sequence[PlanLayer], number: int = 2, scan_mode: str = "LINE") -> PlanBeam:
    return PlanBeam(
        number=number,
        name=f"{number}G000:TX",
        description="",
        is_setup=False,
        machine="G2",
        scan_mode=scan_mode,
        gantry_angle_deg=0.0,
        couch_angle_deg=0.0,
        collimator_angle_deg=0.0,
        isocentre_mm=(0.0, 0.0, 0.0),
        snout_position_mm=465.0,
        sad_mm=(2597.0, 2223.0),
        range_shifters=(),
        meterset_mu=sum(layer.total_mu for layer in layers),
        layers=tuple(layers),
    )


def ion_plan(*beams: PlanBeam) -> IonPlan:
    return IonPlan(
        path=Path("RP.dcm"),
        sop_uid="1.2.3",
        study_uid=STUDY,
        frame_of_reference_uid="1.2.4",
        patient_id=PATIENT,
        label="",
        machine="G2",
        patient_position="HFS",
        fractions_planned=1,
        beams=beams,
    )


def control_points(
    layers: Sequence[PlanLayer], *, private: bool = True, standard: bool = False
) -> list[Dataset]:
    points: list[Dataset] = []
    cumulative = 0.0
    for layer in layers:
        for is_end in (False, True):
            cumulative += layer.total_mu if is_end else 0.0
            point = Dataset()
            point.ControlPointIndex = len(points)
            point.NominalBeamEnergy = layer.energy_mev
            point.CumulativeMetersetWeight = round(cumulative, 9)
            weights = layer.meterset_mu * (not is_end)
            if private:
                add_private_spots(point, layer.positions_mm, weights)
            if standard:
                point.NumberOfScanSpotPositions = len(weights)
                point.ScanSpotPositionMap = [float(value) for value in layer.positions_mm.ravel()]
                point.ScanSpotMetersetWeights = [float(value) for value in weights]
                point.NumberOfPaintings = 1
            points.append(point)
    points[0].GantryAngle = 90.0
    points[0].PatientSupportAngle = 5.0
    points[0].BeamLimitingDeviceAngle = 0.0
    points[0].SnoutPosition = 465.0
    points[0].IsocenterPosition = [1.0, 2.0, 3.0]
    points[0].TableTopPitchAngle = 0.0
    points[0].TableTopRollAngle = 0.0
    return points


def add_private_spots(point: Dataset, positions: np.ndarray, weights: np.ndarray, vr: str = "UN") -> None:
    flat = [float(value) for value in np.ravel(positions)]
    point.add_new(0x300B0010, "LO", "IMPAC")
    point.add_new(0x300B1092, "UN", text_bytes(str(len(weights))))
    point.add_new(0x300B1094, vr, flat if vr == "FL" else struct.pack(f"<{len(flat)}f", *flat))
    point.add_new(
        0x300B1096,
        vr,
        [float(w) for w in weights] if vr == "FL" else struct.pack(f"<{len(weights)}f", *weights),
    )
    point.add_new(0x300B109A, "UN", b"1 ")


def text_bytes(text: str) -> bytes:
    return (text + " " * (len(text) % 2)).encode()


def beam_item(number: int, points: Sequence[Dataset], final: float) -> Dataset:
    item = Dataset()
    item.BeamNumber = number
    item.BeamName = f"{number}G090:TX"
    item.BeamDescription = f"{number}G090T0"
    item.BeamType = "STATIC"
    item.RadiationType = "PROTON"
    item.ScanMode = "LINE"
    item.TreatmentMachineName = "G2"
    item.TreatmentDeliveryType = "TREATMENT"
    item.PrimaryDosimeterUnit = "MU"
    item.VirtualSourceAxisDistances = [2597.0, 2223.0]
    for part in ("Wedges", "Compensators", "Boli", "Blocks", "RangeShifters", "RangeModulators"):
        setattr(item, f"NumberOf{part}", 0)
    item.FinalCumulativeMetersetWeight = final
    item.NumberOfControlPoints = len(points)
    item.IonControlPointSequence = list(points)
    return item


def setup_item(number: int = 1) -> Dataset:
    item = Dataset()
    item.BeamNumber = number
    item.BeamName = "SETUP"
    item.BeamDescription = "Site Setup"
    item.TreatmentDeliveryType = "SETUP"
    item.RadiationType = "PHOTON"
    item.ScanMode = "NONE"
    item.PrimaryDosimeterUnit = "MINUTE"
    item.TreatmentMachineName = "G2"
    item.FinalCumulativeMetersetWeight = 1.0
    points = [Dataset(), Dataset()]
    for index, point in enumerate(points):
        point.ControlPointIndex = index
        point.NominalBeamEnergy = 100.0
        point.CumulativeMetersetWeight = float(index)
    item.IonControlPointSequence = points
    return item


def plan_dataset(*items: Dataset, metersets: dict[int, str] | None = None) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.8"
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.10.2"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = STUDY
    ds.FrameOfReferenceUID = "1.2.826.0.1.3680043.10.3"
    ds.Modality = "RTPLAN"
    ds.PatientID = PATIENT
    ds.RTPlanLabel = "G2 Treatment"
    group = Dataset()
    group.FractionGroupNumber = 1
    group.NumberOfFractionsPlanned = 14
    group.ReferencedBeamSequence = []
    for number, text in (metersets or {}).items():
        reference = Dataset()
        reference.ReferencedBeamNumber = number
        reference.BeamMeterset = text
        group.ReferencedBeamSequence.append(reference)
    ds.FractionGroupSequence = [group]
    position = Dataset()
    position.PatientSetupNumber = 1
    position.PatientPosition = "HFS"
    ds.PatientSetupSequence = [position]
    ds.IonBeamSequence = list(items)
    return ds


def write_plan(path: Path, ds: FileDataset, *, implicit: bool = True) -> Path:
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


# ------------------------------------------------------------------------------------------- the logs


@dataclass(frozen=True)
class Run:
    """Beam on from a fraction of the layer's time to another, laid on the log's clock or off it."""

    begin: float = 0.0
    end: float = 1.0
    on_clock: bool = True
    counts: int = 4000


@dataclass(frozen=True)
class Log:
    """How one layer is logged. ``runs`` follow each other, 100 rows without beam between them."""

    runs: Sequence[Run] = (Run(),)
    spot_ms: Sequence[float] = ()
    idle_rows: int = 100
    tail_rows: int = 80
    parked_rows: int = 2
    lag_rows: int = 3
    shift_mm: tuple[float, float] = (0.0, 0.0)
    noise_counts: int = 0
    layer_number: int | None = None
    range_code: int = 2
    energy: float | None = None
    with_mgn: bool = True


def spot_times_ms(layer: PlanLayer, ms_per_spot: float = 6.0) -> np.ndarray:
    """Time after beam on at which each spot is finished: by MU, so that the dose rate is constant."""
    total_ms = ms_per_spot * len(layer.meterset_mu)
    return total_ms * np.cumsum(layer.meterset_mu) / layer.total_mu


def path_mm(layer: PlanLayer, scan_mode: str, ms: np.ndarray) -> np.ndarray:
    ends = spot_times_ms(layer)
    if scan_mode == "LINE":
        return np.stack([np.interp(ms, ends, axis) for axis in layer.positions_mm.T], axis=1)
    return layer.positions_mm[np.minimum(np.searchsorted(ends, ms, side="right"), len(ends) - 1)]


def ptn_rows(layer: PlanLayer, log: Log, scan_mode: str = "LINE") -> list[tuple[int, ...]]:
    number = layer.number if log.layer_number is None else log.layer_number
    off = (*PARKED, 0, 0, log.noise_counts, log.noise_counts, number)
    rows: list[tuple[int, ...]] = [(*off, IDLE)] * log.idle_rows
    total_ms = spot_times_ms(layer)[-1]
    for run in log.runs:
        begin, end = (round(total_ms * part / ROW_MS) for part in (run.begin, run.end))
        if run.on_clock and log.idle_rows + begin > len(rows):
            rows += [(*off, PLAN)] * (log.idle_rows + begin - len(rows))
        at = (np.arange(begin, end) - log.lag_rows) * ROW_MS
        xy = path_mm(layer, scan_mode, at) + log.shift_mm
        raw = np.rint(xy / (0.00726, 0.0071411) + (24580, 32772)).astype(int)
        raw[: log.parked_rows] = PARKED
        rows += [(x, y, 640, 815, run.counts, run.counts, number, ON) for x, y in raw.tolist()]
        rows += [(*off, ACTUAL)] * 2
        if run is not log.runs[-1]:
            rows += [(*off, IDLE)] * 98
    return rows + [(*off, IDLE)] * log.tail_rows


def ptn_bytes(rows: Sequence[tuple[int, ...]]) -> bytes:
    return b"".join(struct.pack(">8H", *row) for row in rows)


def mgn_bytes(layer: PlanLayer, idle_rows: int = 100) -> bytes:
    on_us = idle_rows * 60
    records = [(0, 0x8000, 0x8000, 0x8000, 0x8000, 0)]
    ends = spot_times_ms(layer)
    for index, ((x, y), end) in enumerate(zip(layer.positions_mm, ends, strict=True)):
        time = on_us + (0 if index == 0 else round(end * 1000))
        preset = (round(x / 0.005445 + 32768), round(y / 0.0071411 + 32768))
        records.append((time, 0x8000, 0x8000, *preset, int(index < len(ends) - 1)))
    records.append((records[-1][0] + 12_000, 0x8000, 0x8000, 0x8000, 0x8000, 0))
    return b"".join(struct.pack(">IHHHHH", *record) for record in records)


@dataclass(frozen=True)
class HandmadeCase:
    folder: Path
    plan: IonPlan
    deliveries: list[str] = field(default_factory=list)

    def manifest(self, number: int = 2) -> BeamManifest:
        beam = self.plan.beam(number)
        return BeamManifest(
            number=number,
            name=beam.name,
            layer_count=len(beam.layers),
            meterset_mu=beam.meterset_mu,
            deliveries=tuple(read_delivery(self.folder / name, self.folder) for name in self.deliveries),
            files=(),
        )

    def deliver(self, logs: dict[int, Log], *, number: int = 2, at: str = "2026010112000000") -> HandmadeCase:
        """Write one timestamp folder that logs these layers."""
        beam = self.plan.beam(number)
        folder = self.folder / at
        folder.mkdir()
        rows = []
        for layer_number, log in logs.items():
            layer = beam.layers[layer_number - 1]
            ptn, mgn = (
                f"02_0014046_001_002_{layer_number:03}.ptn",
                f"02_{PATIENT}_001_002_{layer_number:03}.mgn",
            )
            (folder / ptn).write_bytes(ptn_bytes(ptn_rows(layer, log, beam.scan_mode)))
            if log.with_mgn:
                (folder / mgn).write_bytes(mgn_bytes(layer, log.idle_rows))
            energy = layer.energy_mev if log.energy is None else log.energy
            code = log.range_code
            rows.append((at, layer_number, energy, PATIENT, number, code, code, code, code, ptn, mgn))
        write_texts(folder, rows, number, min(logs), max(logs))
        return HandmadeCase(self.folder, self.plan, [*self.deliveries, at])


HEADER = (
    "RESULT_ID,LAYER_NO,LAYER_ENERGY,PATIENT_ID,FLD_NO,DOSE1_RANGE,DOSE2_RANGE,PLAN_DOSE1_RANGE,"
    "PLAN_DOSE2_RANGE,SCAN_OUT_FL_NM,PLAN_SCAN_OUT_FL_NM"
)


def plan_info(number: int = 2, start: int = 1, stop: int = 2, at: str = "2026010112000000") -> dict[str, str]:
    return {
        "DICOM_PATIENT_ID": PATIENT,
        "DICOM_STUDY_INS_UID": STUDY,
        "DICOM_BEAM_NUMBER": str(number),
        "TCSC_IRRAD_DATETIME": at,
        "TCSC_PATIENT_ID": "0014046",
        "TCSC_PLAN_NUMBER": "1",
        "TCSC_FIELD_NUMBER": str(number),
        "START_LAYER_NUMBER": str(start),
        "STOP_LAYER_NUMBER": str(stop),
        "SHARE_DIR": "\\\\192.168.0.1\\\\Share\\ScanActual",
        "ACTUAL_DIR": f"{PATIENT}\\{STUDY}\\{at}",
    }


def plan_info_text(values: dict[str, str]) -> str:
    return "".join(f"{key},{value}\n" for key, value in values.items())


def write_texts(folder: Path, rows: Sequence[tuple[object, ...]], number: int, start: int, stop: int) -> None:
    info = plan_info(number, start, stop, folder.name)
    (folder / "PlanInfo.txt").write_text(plan_info_text(info))
    table = [HEADER, *(",".join(str(value) for value in row) for row in rows)]
    (folder / "PlanRange.txt").write_text("\n".join(table) + "\n")


def delivered_at(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y%m%d%H%M%S%f")
