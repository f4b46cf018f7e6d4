"""The methods of compress by name, in plain sight; each is a file beside this one."""

from collections.abc import Callable

from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.distilling import distill
from ssl_ft.build.pruning import prune
from ssl_ft.errors import UserError

METHODS: dict[str, Callable[[Work], Compressed]] = {"distill": distill, "prune": prune}


def find_method(name: str) -> Callable[[Work], Compressed]:
    """The method of that name.

    Raises:
        UserError: this version has none of it.
    """
    if name not in METHODS:
        raise UserError(f"method={name} is not there yet; this version has method={' and method='.join(METHODS)}")
    return METHODS[name]
