"""Train on corrections, from their collection to a published model, and offer this to clients as tasks."""
