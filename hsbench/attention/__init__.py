"""Attention over a cache: the kernels' calls, and the fp32 reference."""
