"""Running a network over many scans and leaving everything on disk."""
