"""Training: the loop, the step, and all that a run in training must keep."""
