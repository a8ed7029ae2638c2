"""A model's blocks for new tokens: NumPy twin and native call."""
