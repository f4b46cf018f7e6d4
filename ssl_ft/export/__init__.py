"""A model as files that run elsewhere, and running those files. Nothing here knows settings or run folders."""
