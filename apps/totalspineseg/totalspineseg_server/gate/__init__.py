"""The decision on whether a newly trained model may be served: comparison, hold-out, verdict."""
