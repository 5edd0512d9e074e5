"""Choose the image that a reader gets next."""
