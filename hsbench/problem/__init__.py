"""What is measured: the phase, the shape, and the tensors, synthetic or captured from a model."""
