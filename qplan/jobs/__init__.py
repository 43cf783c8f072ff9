"""The work behind the commands: analyze a model, emit a plan, time a machine, sweep budgets, write a report."""
