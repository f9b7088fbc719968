"""A training: the step, the loop around it, and who looks on."""
