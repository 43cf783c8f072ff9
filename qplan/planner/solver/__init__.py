"""The solver behind the planner: its answer, and a bound that no plan is below."""
