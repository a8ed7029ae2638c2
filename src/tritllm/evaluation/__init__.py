"""Measuring what a depth costs in quality. Needs torch."""
