"""Model versions: where they live, which one is in use, publishing and going back."""
