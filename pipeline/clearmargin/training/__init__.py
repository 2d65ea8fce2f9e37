"""The engine that trains all networks."""
