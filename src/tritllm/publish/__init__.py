"""What a publisher does with a finished folder: describe it, push it."""
