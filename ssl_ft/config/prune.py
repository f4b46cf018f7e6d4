"""Settings of compress by method=prune: weights or whole channels are taken out."""

from ssl_ft.config.base import Settings


class PruneSettings(Settings):
    pass
