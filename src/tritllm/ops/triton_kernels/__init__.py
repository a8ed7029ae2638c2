"""Products with packed weights on GPUs, in Triton; needs triton where a kernel is launched.

`layout.py` defines the memory, `codes.py` how a kernel reads it, `vector.py` and `matrix.py` are
the two kernels, `launch.py` chooses between them.
"""
