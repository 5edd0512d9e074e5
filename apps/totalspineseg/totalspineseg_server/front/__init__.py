"""Handle requests before MONAI Label's own application, which is never edited."""
