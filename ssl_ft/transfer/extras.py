"""Packages that a plain installation lacks, imported when a strategy first needs them."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ssl_ft.errors import UserError


def import_peft(*, strategy: str) -> Any:
    """The package peft, imported when it is first needed: it takes seconds.

    Raises:
        UserError: it is not installed.
    """
    try:
        with _offline(), without_enum_warnings():
            import peft
    except ImportError as error:
        extra = "qlora" if strategy == "qlora" else "peft"
        raise UserError(f"strategy={strategy} needs the package peft; pip install '.[{extra}]'") from error
    return peft


def import_bitsandbytes() -> Any:
    """The package bitsandbytes, imported when it is first needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        with _offline():
            import bitsandbytes
    except ImportError as error:
        raise UserError("strategy=qlora needs the package bitsandbytes; pip install '.[qlora]'") from error
    return bitsandbytes


@contextmanager
def _offline() -> Iterator[None]:
    """Import bitsandbytes without the kernel it would fetch from the hub where the package `kernels` is installed.

    It warns where it could not fetch it; that kernel computes in bfloat16 and would not be used here anyway.
    """
    talk = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, is_hidden = talk.level, "kernels" not in sys.modules
    talk.setLevel(logging.ERROR)
    if is_hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        talk.setLevel(level)
        if is_hidden:
            del sys.modules["kernels"]


@contextmanager
def without_enum_warnings() -> Iterator[None]:
    """Import torchao without the lines that torch logs of its enumerations; peft imports it where it is installed.

    torchao 0.18 registers them with torch as constants, which torch calls deprecated on stderr, a line each. It is
    between those two and nothing a user could mend; whatever else is logged there is let through.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "Calling register_constant() on Enum subclasses is deprecated" not in str(record.msg)

    talk = logging.getLogger("torch.utils._pytree")
    talk.addFilter(is_other)
    try:
        yield
    finally:
        talk.removeFilter(is_other)
