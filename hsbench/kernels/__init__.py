"""The compiled kernels: the libraries behind their C ABI, and the memory that they work on."""
