"""Running a HuggingFace causal language model with our attention in place of its own (extra ``hsbench[models]``)."""
