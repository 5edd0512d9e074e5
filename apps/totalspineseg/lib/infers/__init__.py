"""MONAI Label inference tasks: a request in, the pipeline, a label map in wire ids and a report out."""
