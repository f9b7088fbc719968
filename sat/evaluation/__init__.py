"""Measures a trained model: clean and robust accuracy, one verdict an image."""
