"""From corrections to a published model: material, replay, runs, the tasks clients start."""
