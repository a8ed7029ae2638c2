"""Packed models as pictures: a page without outside resources, and PNG files."""
