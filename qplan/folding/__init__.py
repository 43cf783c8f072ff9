"""Channel scales that move from one weight to another: where, how strongly, and whether that pays."""
