"""Read DICOM image series, read and write segmentation objects, and make demo studies for a PACS."""
