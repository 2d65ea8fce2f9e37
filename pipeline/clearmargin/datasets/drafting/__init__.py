"""Drafting a data card from a folder of images and masks: what lies there, what was guessed, what was left out."""
