"""Golden checks of a model folder: what has silently gone wrong elsewhere, looked at in the user's own files."""
