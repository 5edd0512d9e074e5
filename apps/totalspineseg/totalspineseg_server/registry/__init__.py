"""Model versions: where they are stored, which one is in use, publishing and rolling back."""
