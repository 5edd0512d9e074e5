"""Training from corrections to a published model: material, judging, runs, and the tasks that clients start."""
