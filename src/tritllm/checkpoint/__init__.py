"""Reading packed folders: open, verify, dequantize."""
