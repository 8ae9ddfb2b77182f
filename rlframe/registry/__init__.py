"""Finding plugins, loading them, and calling them: entry points, local files, pluggy."""
