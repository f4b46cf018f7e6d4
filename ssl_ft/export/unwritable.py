"""What exporters raise on a model they cannot write, as a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ssl_ft.errors import UserError


@contextmanager
def refusing_layers(model: nn.Module, *, what: str) -> Iterator[None]:
    """Turn an exporter's error into a refusal; a full disk stays what it is.

    Args:
        model: what is written.
        what: the format, as messages call it.

    Raises:
        UserError: the exporter could not.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # the exporters have no class of their own that covers all they raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:200] if lines else type(error).__name__
        raise UserError(
            f"this {type(model).__name__} cannot be written as {what}: {reason}. Some layer decides by the numbers it "
            "is given, or does what the format has no operation for; take another format or another architecture"
        ) from error
