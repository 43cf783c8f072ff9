"""Integers fitted to a plan as a whole, after it was chosen."""
