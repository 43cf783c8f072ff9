"""Moves channel scales from one weight to another: where, how strongly, and whether that lowers the loss."""
