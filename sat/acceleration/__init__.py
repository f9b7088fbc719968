"""What makes a step fast here: precision, folding, compilation, checkpointed gradients."""
