"""qplan: a mixed-precision quantization planner for MNN language models."""

__version__ = "0.1.0"
