"""From an exporter's graph and chosen formats to a folder that the engine runs."""
