"""All scans of the studies at a glance, and what readers do with one: look, pin, accept, reject, undo."""
