"""Chains of instances: through the slices of a volume. Knows no network."""
