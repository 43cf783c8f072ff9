"""MNN's engine, in child processes."""
