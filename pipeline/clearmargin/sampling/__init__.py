"""What a prediction is made of: samples of it, the same object in each, the maps and the spread they give."""
