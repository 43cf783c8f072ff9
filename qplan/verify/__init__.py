"""The built model against the Hugging Face model, on the real engine."""
