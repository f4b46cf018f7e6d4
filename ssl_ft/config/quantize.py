"""Settings of compress by method=quantize: numbers of 8 bits."""

from ssl_ft.config.base import Settings


class QuantizeSettings(Settings):
    pass
