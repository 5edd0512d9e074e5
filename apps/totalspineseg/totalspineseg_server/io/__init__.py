"""Read and write what scans and labels are stored in; every such file may be damaged or hostile."""
