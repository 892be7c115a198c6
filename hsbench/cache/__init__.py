"""How K and V are kept: what is dropped (``prune`` is the definition), and how the rest is stored."""
