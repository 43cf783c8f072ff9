"""MNN model folders in lm-evaluation-harness, as its model ``mnn``: an optional part, ``pip install 'qplan[eval]'``."""
