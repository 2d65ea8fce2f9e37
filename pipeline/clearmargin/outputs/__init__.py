"""What a prediction leaves: a table of outputs, the case folder with its manifest, and the way back."""
