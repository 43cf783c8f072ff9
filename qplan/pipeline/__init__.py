"""The jobs behind the commands: analyze a model, emit a plan, build and prove it."""
