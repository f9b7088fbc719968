"""What a training costs: timed here beside the machine's limit and other people's loops, or told
beforehand."""
