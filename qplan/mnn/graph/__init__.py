"""Graphs of MNN: reading, patching, converting."""
