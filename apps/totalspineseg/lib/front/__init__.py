"""The server's front: what stands before MONAI Label's own application, and why nothing of it is edited."""
