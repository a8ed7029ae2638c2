"""Shards of a run done by the machines of a Ray cluster; Ray is imported when one is asked for."""
