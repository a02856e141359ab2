"""Small synthetic plans, CTs, rows and water for the tests of the engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mqi.dose.grid import DoseGrid
from mqi.engines.contract import EngineLayer
from mqi.engines.settings import EngineSettings
from mqi.plan import IonPlan, PlanBeam

MU_PER_COUNT = 2.12e-8
FRAME = "1.2.826.0.1.3680043.8.498.7"
STUDY = "1.2.826.0.1.3680043.8.498.8"
PLAN_UID = "1.2.826.0.1.3680043.8.498.9"


def a_beam(**changes) -> PlanBeam:
    """A treatment beam without layers: its geometry is what an engine uses."""
    values = {
        **{"number": 2, "name": "1G180:TX", "description": "", "is_setup": False, "machine": "G2"},
        **{"scan_mode": "LINE", "gantry_angle_deg": 0.0, "couch_angle_deg": 0.0, "collimator_angle_deg": 0.0},
        **{"isocentre_mm": (0.0, 0.0, 0.0), "snout_position_mm": 250.0, "sad_mm": (2597.0, 2223.0)},
        **{"range_shifters": (), "meterset_mu": 1.0, "layers": ()},
    }
    return PlanBeam(**(values | changes))


def a_setup_beam() -> PlanBeam:
    return a_beam(number=1, name="SETUP", is_setup=True, scan_mode="NONE")


def a_plan(path: Path, *beams: PlanBeam, **changes) -> IonPlan:
    """A plan as read_plan gives it, for a file that write_plan wrote."""
    values = {
        **{"path": path, "sop_uid": PLAN_UID, "study_uid": STUDY, "frame_of_reference_uid": FRAME},
        **{"patient_id": "QA-1", "label": "QA", "machine": "G2", "patient_position": "HFS"},
        **{"fractions_planned": 1, "beams": beams or (a_setup_beam(), a_beam())},
    }
    return IonPlan(**(values | changes))


def a_layer(number=1, energy_mev=150.0, x_mm=(0.0,), y_mm=(0.0,), counts=(1000,)) -> EngineLayer:
    x, y, c = np.broadcast_arrays(np.array(x_mm, float), np.array(y_mm, float), np.array(counts, np.int64))
    return EngineLayer(number, energy_mev, np.arange(len(x)) * 0.06, x.copy(), y.copy(), c.copy())


def some_layers(count=3, rows=50, energy_mev=100.0, seed=1) -> tuple[EngineLayer, ...]:
    random = np.random.default_rng(seed)
    return tuple(
        EngineLayer(
            index + 1,
            energy_mev + 2.0 * index,
            np.arange(rows) * 0.06,
            random.uniform(-20, 20, rows),
            random.uniform(-20, 20, rows),
            random.integers(3000, 5000, rows),
        )
        for index in range(count)
    )


def water(count=(60, 60, 60), spacing_mm=2.0, centre_mm=(0.0, 0.0, 0.0), axes=None) -> DoseGrid:
    """Water around ``centre_mm``; ``count`` along i, j, k."""
    axes = np.eye(3) if axes is None else axes
    half = (np.array(count) - 1) / 2 * spacing_mm
    return DoseGrid(np.ones(count[::-1]), np.array(centre_mm) - half @ axes, np.full(3, spacing_mm), axes)


def settings(**changes) -> EngineSettings:
    return EngineSettings(**changes)


def small_water(**changes) -> EngineSettings:
    """The analytic engine on 20 x 20 x 30 voxels of 4 mm, its surface 60 mm before the isocentre."""
    dims = {"PhantomDimX": 20, "PhantomDimY": 20, "PhantomDimZ": 30}
    units = {f"PhantomUnit{axis}": 4 for axis in "XYZ"}
    places = {"PhantomPositionX": -40, "PhantomPositionY": -40, "PhantomPositionZ": -60}
    return EngineSettings(**({"medium": "water", "parameters": {**dims, **units, **places}} | changes))


def _file(path: Path, sop_class: str, sop_uid: str, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, sop_uid, modality
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.PatientID = STUDY, FRAME, "QA-1"
    ds.PatientName = "QA^Phantom"
    return ds


def write_ct(folder: Path, count=(20, 20, 15), spacing_mm=4.0, hu=0, **changes) -> list[Path]:
    """Write an axial CT of one CT number, its centre at the origin. ``changes`` go into every header."""
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows, slices = count
    paths = []
    for index in range(slices):
        path = folder / f"slice-{slices - index:03d}.dcm"  # names against the order of z
        ds = _file(path, "1.2.840.10008.5.1.4.1.1.2", f"{FRAME}.2.{index + 1}", "CT")
        ds.SeriesInstanceUID = f"{FRAME}.1"
        ds.Rows, ds.Columns, ds.PixelSpacing = rows, columns, [spacing_mm, spacing_mm]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [
            -(columns - 1) / 2 * spacing_mm,
            -(rows - 1) / 2 * spacing_mm,
            (index - (slices - 1) / 2) * spacing_mm,
        ]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 15, 0, -1024, 1
        ds.PixelData = np.full((rows, columns), hu + 1024, np.uint16).tobytes()
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _control_point(index: int, energy_mev: float, weight: float, angles: dict[str, float]) -> Dataset:
    point = Dataset()
    point.ControlPointIndex, point.NominalBeamEnergy, point.CumulativeMetersetWeight = (
        index,
        energy_mev,
        weight,
    )
    point.ScanSpotTuneID, point.NumberOfScanSpotPositions = "1", 2
    point.ScanSpotPositionMap = [-5.0, 0.0, 5.0, 0.0]
    point.ScanSpotMetersetWeights = [0.0, 0.5] if index % 2 == 0 else [0.0, 0.0]
    point.NumberOfPaintings = 1
    if index == 0:
        point.GantryAngle, point.PatientSupportAngle = angles["gantry"], angles["couch"]
        point.BeamLimitingDeviceAngle, point.SnoutPosition = 0.0, 250.0
        point.IsocenterPosition = [0.0, 0.0, 0.0]
    return point


def write_plan(path: Path, gantry=0.0, couch=0.0, name="1G180:TX", shifter="") -> Path:
    """Write an RT Ion Plan with a setup field (1) and a treatment beam (2) of one layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = _file(path, "1.2.840.10008.5.1.4.1.1.481.8", PLAN_UID, "RTPLAN")
    ds.RTPlanLabel, ds.RTPlanGeometry, ds.SeriesInstanceUID = "QA", "PATIENT", f"{FRAME}.3"
    setup, beam = Dataset(), Dataset()
    angles = {"gantry": gantry, "couch": couch}
    for number, item, scan, kind in ((1, setup, "NONE", "SETUP"), (2, beam, "LINE", "TREATMENT")):
        item.BeamNumber, item.BeamName, item.ScanMode = number, "SETUP" if number == 1 else name, scan
        item.TreatmentDeliveryType, item.TreatmentMachineName, item.BeamDescription = kind, "G2", ""
        item.RadiationType = "PHOTON" if number == 1 else "PROTON"
        item.PrimaryDosimeterUnit = "MINUTE" if number == 1 else "MU"
        item.VirtualSourceAxisDistances, item.FinalCumulativeMetersetWeight = [2597.0, 2223.0], 0.5
        item.NumberOfControlPoints, item.BeamType = 2, "STATIC"
        item.NumberOfRangeShifters = item.NumberOfBlocks = item.NumberOfWedges = 0
        item.NumberOfCompensators = item.NumberOfBoli = 0
        item.NumberOfLateralSpreadingDevices = item.NumberOfRangeModulators = 0
        item.ReferencedPatientSetupNumber = 1
        item.IonControlPointSequence = [
            _control_point(0, 100.0, 0.0, angles),
            _control_point(1, 100.0, 0.5, angles),
        ]
    if shifter:
        device = Dataset()
        device.RangeShifterNumber, device.RangeShifterID, device.RangeShifterType = 1, shifter, "BINARY"
        beam.NumberOfRangeShifters, beam.RangeShifterSequence = 1, [device]
    ds.IonBeamSequence = [setup, beam]
    position = Dataset()
    position.PatientSetupNumber, position.PatientPosition = 1, "HFS"
    ds.PatientSetupSequence = [position]
    group = Dataset()
    group.FractionGroupNumber, group.NumberOfFractionsPlanned, group.NumberOfBeams = 1, 1, 2
    group.NumberOfBrachyApplicationSetups = 0
    references = []
    for number in (1, 2):
        reference = Dataset()
        reference.ReferencedBeamNumber, reference.BeamMeterset = number, 0.5
        references.append(reference)
    group.ReferencedBeamSequence = references
    ds.FractionGroupSequence = [group]
    ds.save_as(path, enforce_file_format=True)
    return path
