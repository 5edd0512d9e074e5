"""One model in each file, which names it; each class is a direct child of ``TaskConfig``, or the host does not see it."""
