"""One model in each file, which names it. Each class is a direct child of ``TaskConfig``, or the host misses it."""
