"""The machine under a result: hardware, software, ceilings, and what stood in the way."""
