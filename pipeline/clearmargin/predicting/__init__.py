"""The engine of predict: a predictor that goes to any process, one case, one clip, one folder."""
