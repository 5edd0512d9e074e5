"""Store model versions, publish new ones, and choose which one is in use."""
