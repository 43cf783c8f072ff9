"""Decides which plan ships: what the user requests, and whether whole models confirm the planner's answer."""
