"""Making a trained model smaller: distilling, pruning, quantizing. Nothing here knows settings or run folders."""
