"""Searching for settings: ranges, a study that processes share, what each trial took. Training is the caller's."""
