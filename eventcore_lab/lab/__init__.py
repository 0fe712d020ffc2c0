"""The judging half: the results file, the numbers, the pictures, the checks, the verdicts.

It reads the waist and nothing of the half that measures."""
