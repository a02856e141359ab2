"""The case's DICOM objects: the RT Ion Plan as the site's record system exports it, and the CT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTIonPlanStorage

from mqi.plan import PlanBeam, PlanLayer
from mqi.synthesize.phantom import Phantom
from mqi.synthesize.recipe import Recipe

__all__ = ["write_ct", "write_plan"]

PRIVATE_GROUP, PRIVATE_CREATOR = 0x300B, "IMPAC"
TUNE_ID, SPOT_COUNT, POSITION_MAP, METERSET_WEIGHTS, PAINTINGS = 0x90, 0x92, 0x94, 0x96, 0x9A
"""Elements of the vendor's private block (measured): ASCII numbers and little-endian float32, all VR UN."""

TUNE = "3.0"
SPOT_SIZE_MM = 11.0
"""Nominal full width at half maximum at the isocentre."""


def _base(recipe: Recipe, sop_class: UID, modality: str, what: str, *index: int) -> FileDataset:
    """Patient, study, series, equipment and SOP common modules; nobody's real data."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = recipe.uid(what, *index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = recipe.uid("study")
    data.SeriesInstanceUID = recipe.uid(what, "series")
    data.FrameOfReferenceUID = recipe.uid("frame of reference")
    data.Modality = modality
    data.PatientName = recipe.patient_name
    data.PatientID = recipe.patient_id
    data.PatientBirthDate = recipe.birth_date
    data.PatientSex = ""
    data.StudyDate = data.SeriesDate = f"{recipe.first_delivery_at:%Y%m%d}"
    data.StudyTime = data.SeriesTime = "120000"
    data.AccessionNumber = ""
    data.ReferringPhysicianName = ""
    data.OperatorsName = ""
    data.StudyID = "1"
    data.SeriesNumber = 1
    data.PositionReferenceIndicator = ""
    data.Manufacturer = "MQI Communicator"
    data.ManufacturerModelName = "synthesize"
    data.DeviceSerialNumber = "1"
    data.SoftwareVersions = "1"
    return data


def write_ct(folder: Path, recipe: Recipe, phantom: Phantom) -> tuple[Path, ...]:
    """Write the phantom as an axial CT series, one file a slice. No CT for a case in water: no files."""
    if phantom.hu is None:
        return ()
    folder.mkdir()
    paths = []
    for number, pixels in enumerate(phantom.hu, start=1):
        data = _base(recipe, CTImageStorage, "CT", "ct", number)
        z = float(phantom.origin_mm[2]) + (number - 1) * phantom.voxel_mm
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.InstanceNumber = number
        data.AcquisitionNumber = 1
        data.PatientPosition = "HFS"
        data.Laterality = ""
        data.KVP = 120
        data.Rows, data.Columns = pixels.shape
        data.PixelSpacing = [phantom.voxel_mm, phantom.voxel_mm]
        data.SliceThickness = phantom.voxel_mm
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [float(phantom.origin_mm[0]), float(phantom.origin_mm[1]), z]
        data.SliceLocation = z
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelRepresentation = 1
        data.RescaleIntercept = 0
        data.RescaleSlope = 1
        data.RescaleType = "HU"
        data.PixelData = pixels.astype("<i2").tobytes()
        path = folder / f"CT.{data.SOPInstanceUID}.dcm"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def write_plan(folder: Path, recipe: Recipe, beams: tuple[PlanBeam, ...]) -> Path:
    """Write ``RP.<SOP instance UID>.dcm`` with these beams, the setup field among them.

    Implicit VR, as the site's record system writes: the private elements then are of unknown VR.
    """
    plan = _base(recipe, RTIonPlanStorage, "RTPLAN", "plan")
    plan.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    plan.RTPlanLabel = f"{recipe.room} Treatment"
    plan.RTPlanName = "SYNTHETIC" if recipe.revision == 0 else f"SYNTHETIC REV {recipe.revision}"
    plan.RTPlanDate = f"{recipe.first_delivery_at:%Y%m%d}"
    plan.RTPlanTime = "120000"
    plan.PlanIntent = "VERIFICATION"
    plan.RTPlanGeometry = "TREATMENT_DEVICE"
    plan.ApprovalStatus = "UNAPPROVED"
    setup = Dataset()
    setup.PatientSetupNumber = 1
    setup.PatientPosition = "HFS"
    plan.PatientSetupSequence = Sequence([setup])
    group = Dataset()
    group.FractionGroupNumber = 1
    group.NumberOfFractionsPlanned = max(recipe.fractions, 14)
    group.NumberOfBeams = len(beams)
    group.NumberOfBrachyApplicationSetups = 0
    group.ReferencedBeamSequence = Sequence([_reference(beam) for beam in beams])
    plan.FractionGroupSequence = Sequence([group])
    plan.IonBeamSequence = Sequence([_beam(beam, recipe.spot_tags) for beam in beams])
    path = folder / f"RP.{plan.SOPInstanceUID}.dcm"
    plan.save_as(path, enforce_file_format=True)
    return path


def _reference(beam: PlanBeam) -> Dataset:
    item = Dataset()
    item.ReferencedBeamNumber = beam.number
    if not beam.is_setup:
        item.BeamMeterset = round(beam.meterset_mu, 6)
    return item


def _beam(beam: PlanBeam, spot_tags: str) -> Dataset:
    """One item of the Ion Beam Sequence (DICOM PS3.3 C.8.8.25)."""
    item = Dataset()
    item.Manufacturer = "MQI Communicator"
    item.InstitutionName = "Synthetic"
    item.BeamNumber = beam.number
    item.BeamName = beam.name
    item.BeamDescription = beam.description
    item.BeamType = "STATIC"
    item.RadiationType = "PHOTON" if beam.is_setup else "PROTON"
    item.ScanMode = beam.scan_mode
    if beam.scan_mode == "MODULATED":
        item.ModulatedScanModeType = "STATIONARY"
    item.TreatmentMachineName = beam.machine
    item.PrimaryDosimeterUnit = "MINUTE" if beam.is_setup else "MU"
    item.VirtualSourceAxisDistances = list(beam.sad_mm)
    item.TreatmentDeliveryType = "SETUP" if beam.is_setup else "TREATMENT"
    for devices in (
        "Wedges",
        "Compensators",
        "Boli",
        "Blocks",
        "RangeShifters",
        "LateralSpreadingDevices",
        "RangeModulators",
    ):
        setattr(item, f"NumberOf{devices}", 0)
    item.FinalCumulativeMetersetWeight = round(beam.meterset_mu, 6)
    item.ReferencedPatientSetupNumber = 1
    item.PatientSupportType = "TABLE"
    snout = Dataset()
    snout.SnoutID = "SNOUT"
    item.SnoutSequence = Sequence([snout])
    if beam.is_setup:
        points = [_point(0, 0.0, 100.0), _point(1, beam.meterset_mu, 100.0)]
    else:
        points, delivered = [], 0.0
        for layer in beam.layers:
            for weights in (layer.meterset_mu, np.zeros(len(layer.meterset_mu))):
                point = _point(len(points), delivered, layer.energy_mev)
                _add_spots(point, layer, weights, spot_tags)
                points.append(point)
                delivered += float(weights.sum())
        points[-1].CumulativeMetersetWeight = round(delivered, 6)
    _add_geometry(points[0], beam)
    item.NumberOfControlPoints = len(points)
    item.IonControlPointSequence = Sequence(points)
    return item


def _point(index: int, cumulative_mu: float, energy_mev: float) -> Dataset:
    point = Dataset()
    point.ControlPointIndex = index
    point.NominalBeamEnergy = energy_mev
    point.CumulativeMetersetWeight = round(cumulative_mu, 6)
    return point


def _add_spots(point: Dataset, layer: PlanLayer, weights: NDArray[np.float64], spot_tags: str) -> None:
    """Add spot positions and weights, as standard attributes, private ones or both."""
    positions = layer.positions_mm.astype("<f4")
    if spot_tags in ("standard", "both"):
        point.ScanSpotTuneID = TUNE
        point.NumberOfScanSpotPositions = len(positions)
        point.ScanSpotPositionMap = positions.ravel().tolist()
        point.ScanSpotMetersetWeights = weights.astype("<f4").tolist()
        point.ScanningSpotSize = [SPOT_SIZE_MM, SPOT_SIZE_MM]
        point.NumberOfPaintings = layer.paintings
    if spot_tags in ("private", "both"):
        block = point.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
        block.add_new(TUNE_ID, "UN", _ascii(TUNE))
        block.add_new(SPOT_COUNT, "UN", _ascii(str(len(positions))))
        block.add_new(POSITION_MAP, "UN", positions.tobytes())
        block.add_new(METERSET_WEIGHTS, "UN", weights.astype("<f4").tobytes())
        block.add_new(PAINTINGS, "UN", _ascii(str(layer.paintings)))


def _ascii(text: str) -> bytes:
    """A number as text, padded to an even length."""
    return text.encode("ascii") + b" " * (len(text) % 2)


def _add_geometry(point: Dataset, beam: PlanBeam) -> None:
    """Angles and positions stand on the first control point only: none of them changes."""
    point.GantryAngle = beam.gantry_angle_deg
    point.GantryRotationDirection = "NONE"
    point.GantryPitchAngle = 0.0
    point.GantryPitchRotationDirection = "NONE"
    point.BeamLimitingDeviceAngle = beam.collimator_angle_deg
    point.BeamLimitingDeviceRotationDirection = "NONE"
    point.PatientSupportAngle = beam.couch_angle_deg
    point.PatientSupportRotationDirection = "NONE"
    point.TableTopPitchAngle = 0.0
    point.TableTopPitchRotationDirection = "NONE"
    point.TableTopRollAngle = 0.0
    point.TableTopRollRotationDirection = "NONE"
    point.TableTopVerticalPosition = None
    point.TableTopLongitudinalPosition = None
    point.TableTopLateralPosition = None
    point.IsocenterPosition = [round(value, 4) for value in beam.isocentre_mm]
    point.SnoutPosition = beam.snout_position_mm
