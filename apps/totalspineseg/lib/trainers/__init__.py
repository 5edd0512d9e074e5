"""Training from corrections to a published model: what trains, what judges, the runs, and the tasks that clients
start."""
