"""What annotators send back: read by name, kept with its history, never overwritten."""
