"""Settings of compress by method=distill: a student learns from the model."""

from ssl_ft.config.base import Settings


class DistillSettings(Settings):
    pass
