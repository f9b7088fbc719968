"""What nobody does on purpose: kills at any moment, command lines at random, damaged files, and
faults in the program itself. `make test` tries a few of each, `python -m tests.crash` many."""
