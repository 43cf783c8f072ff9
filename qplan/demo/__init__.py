"""The embedded demo model: its corpus, its training and its files."""
