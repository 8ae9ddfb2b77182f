"""The command line: one file a command. Importing it must not import torch."""
