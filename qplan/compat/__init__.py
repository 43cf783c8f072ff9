"""The laboratory behind the table of exporters, converters and engines that go together."""
