"""The PACS: a DICOMweb server as a datastore of series, and Orthanc for trying it without a hospital's PACS."""
