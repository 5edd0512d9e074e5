"""Run the networks over many scans and write everything to disk."""
