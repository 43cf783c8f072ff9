"""The exact solver behind the planner."""
