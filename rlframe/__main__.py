"""`python -m rlframe` is `rlframe`, by the interpreter that one chooses."""

from rlframe.cli.console import console

if __name__ == "__main__":  # a process that multiprocessing spawns imports this, too
    console()
