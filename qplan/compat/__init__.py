"""Measures which exporters, converters and engines go together; the table of that."""
