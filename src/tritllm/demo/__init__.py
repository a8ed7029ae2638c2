"""The whole system on a small model of our own, in a minute."""
