"""Turning a plan into committed shards, on this machine."""
