"""Decide whether a newly trained model may be put into use: comparison, hold-out, verdict."""
