"""What each format of each tensor costs in accuracy."""
