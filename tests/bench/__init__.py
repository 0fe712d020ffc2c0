"""`make bench`: see __main__."""
