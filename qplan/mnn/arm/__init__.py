"""MNN's aarch64 engine on this machine, under emulation: from packages into a cache folder, and its processes."""
