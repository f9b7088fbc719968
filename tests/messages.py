"""What a run says of its state, by which many tests see what it did; the wording stands here."""

FINISHED = "is finished"  # nothing was left to do
RESUMED = "resumed at step"  # went on from a checkpoint
