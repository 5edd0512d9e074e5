"""Run MONAI Label's inferences: take a request, run the pipeline, return a label map in wire ids and a report."""
