"""Whether a newly trained model may be served: measures, comparison, hold-out, verdict."""
