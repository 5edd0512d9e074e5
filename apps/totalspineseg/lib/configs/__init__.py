"""One model a file, named by the file; each class is a direct child of ``TaskConfig``, or the host does not see it."""
