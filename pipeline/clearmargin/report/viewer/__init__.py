"""The case viewer: one HTML file with a case's image, masks, maps and table, which opens without a network."""
