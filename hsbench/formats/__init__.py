"""How K and V are stored: one file per format, each with its bytes, pack and unpack.

``hierarchical`` holds the block map and the pools; what the bytes of one page are is the device layout's business
(``cpu_layout``). ``bitmap`` is the unstructured rival's format.
"""
