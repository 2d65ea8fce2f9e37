"""Uncertainty: samples of a prediction, and the maps they give."""
