"""Read DICOM image series; read and write segmentation objects."""
