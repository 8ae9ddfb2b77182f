"""`python -m rlframe` is `rlframe`, by the interpreter that one chooses."""

from rlframe.cli.main import main

main()
