"""Which plan ships: what the user wants, and what whole models say about the planner's answer."""
