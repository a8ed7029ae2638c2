"""What a model takes to be served: weights, cache and GPUs, from shapes and a config alone."""
