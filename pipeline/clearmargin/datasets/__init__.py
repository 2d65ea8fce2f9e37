"""Data sets: cards, the cases they describe, splits by unit, training samples, phantoms."""
