"""The embedded model: its files, its held-out text and the record of its training (the script is reports/demo)."""
