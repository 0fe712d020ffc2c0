"""`python -m eventcore_lab` is the command line."""

from eventcore_lab.cli import main

main()
