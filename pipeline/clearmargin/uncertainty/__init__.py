"""Uncertainty: samples of a prediction, the maps they give, and margins, thresholds and scaling with a promise."""
