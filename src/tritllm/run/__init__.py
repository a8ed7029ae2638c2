"""What runs a packed model: generate, bench, serve, doctor."""
