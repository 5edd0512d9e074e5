"""The PACS: a DICOMweb server as a datastore of series, and Orthanc to try it without a hospital's."""
