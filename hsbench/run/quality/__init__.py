"""What pruning the KV cache costs a model: texts scored through the real path beside the same model's dense run."""
