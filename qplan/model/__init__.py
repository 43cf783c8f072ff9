"""Hugging Face models: loading, their linear tensors, their names in MNN."""
