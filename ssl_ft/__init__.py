"""Self-supervised pretraining on unlabelled images, judged honestly on few labels.

Importing this imports nothing else; the parts are in the modules below it.
"""

__version__ = "0.1.0"
