"""The methods of compress by name, in plain sight; each is a file beside this one."""

from collections.abc import Callable

from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.distilling import distill
from ssl_ft.build.pruning import prune
from ssl_ft.build.quantizing import quantize

Method = Callable[[Work], Compressed]
METHODS: dict[str, Method] = {"distill": distill, "prune": prune, "quantize": quantize}
