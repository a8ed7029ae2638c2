"""torch operators on packed weights."""
