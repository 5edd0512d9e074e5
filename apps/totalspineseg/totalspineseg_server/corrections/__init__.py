"""Corrections of annotators: their segments are read by name, their history is kept, and nothing is overwritten."""
