"""DICOM: image series in, segmentation objects in and out, and demo studies for a PACS without patients."""
