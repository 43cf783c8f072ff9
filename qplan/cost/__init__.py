"""What formats cost: bytes of files, and RAM on targets."""
