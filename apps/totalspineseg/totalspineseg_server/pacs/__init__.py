"""Use a PACS (a DICOMweb server) as a datastore of series, and run Orthanc to try this without a hospital's PACS."""
