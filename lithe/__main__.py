"""`python -m lithe` is the command line."""

from lithe.cli import main

main()
