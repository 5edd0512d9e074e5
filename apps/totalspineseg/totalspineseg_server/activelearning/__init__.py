"""The choice of the image that an annotator gets next."""
