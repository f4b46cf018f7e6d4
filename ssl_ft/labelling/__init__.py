"""Which images to label next: coverage of a pool, doubts of a classifier, both. Features in, numbers of images out."""
