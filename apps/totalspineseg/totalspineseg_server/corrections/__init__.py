"""Receive the corrections of readers: segments are known by name, everything is kept, and nothing is overwritten."""
