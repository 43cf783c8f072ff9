"""Everything that knows MNN. The engine, the converter and the exporter run in child processes."""
