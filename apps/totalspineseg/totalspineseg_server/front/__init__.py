"""The server's front: it handles requests before MONAI Label's own application, which is never edited."""
