"""The file: names, trits, layout, headers, manifest. Imports nothing but errors and NumPy."""
