"""Data sets: cards, splits, sampling, and phantoms made from a seed."""
