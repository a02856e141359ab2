"""Doses: their grid, their DICOM form, their comparison."""
