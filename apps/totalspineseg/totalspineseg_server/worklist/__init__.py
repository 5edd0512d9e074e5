"""Show all scans of the studies at a glance, and let readers look at one, pin, accept, reject and undo."""
