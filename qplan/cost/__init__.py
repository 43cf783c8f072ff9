"""What each format costs in bytes."""
