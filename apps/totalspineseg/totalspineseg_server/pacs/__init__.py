"""Use a PACS (a DICOMweb server) as a datastore of series, and run Orthanc for trying it without a hospital's PACS."""
