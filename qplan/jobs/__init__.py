"""What the commands do: analyze a model, emit a plan, time a machine, sweep budgets, write a report."""
