"""From a source model to packed and dequantized folders, streaming."""
