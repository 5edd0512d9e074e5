"""Make UIDs from names, so that the same thing gets the same UID again."""

import hashlib
import uuid


def uid_from(*parts: str) -> str:
    """Return a DICOM UID under 2.25, the root for UUIDs, that depends only on ``parts``."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"
