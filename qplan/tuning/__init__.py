"""Integers and scales fitted to a plan as a whole, after it was chosen."""
