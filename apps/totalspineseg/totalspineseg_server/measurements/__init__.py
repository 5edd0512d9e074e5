"""Measure discs, vertebral bodies, canal and cord, and the curves of the column, from a label map.

Everything is measured in the sagittal band around the canal's centerline, in the frame of each level, by counting
voxels (a mean thickness is a volume divided by an area): unlike the distance between two surface voxels this has no
error of half a voxel and needs no interpolation. Definitions and sources: docs/measurements.md.
"""

from totalspineseg_server.measurements.measured_rows import COLUMN_ROW, COLUMNS, CORD_NOTE, Row, measure
from totalspineseg_server.measurements.structure_rows import structure_rows

__all__ = ["COLUMNS", "COLUMN_ROW", "CORD_NOTE", "Row", "measure", "structure_rows"]
