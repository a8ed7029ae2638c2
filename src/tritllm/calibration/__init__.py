"""Calibration: statistics of every matrix's inputs on a text, and encodings made with them.

A model passes through memory block by block, and a text through the blocks. Needs torch and
transformers.
"""
