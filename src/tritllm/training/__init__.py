"""Training what a packed file holds: levels, steps, norms and biases. Needs torch."""
