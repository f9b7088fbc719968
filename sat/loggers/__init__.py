"""Where a run tells of itself: the screen and TensorBoard."""
