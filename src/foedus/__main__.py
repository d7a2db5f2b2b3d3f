"""`python -m foedus`: the command line.
Nothing may come in but that."""

from foedus.cli import main

main()
