"""The version of the package, which is also the tool version of what it writes."""

__version__ = "0.1.0"
