"""What a run directory says about its run. Reads files; imports neither the engine nor torch."""
