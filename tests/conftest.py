"""Fixtures shared by all tests: real images beside the checkout, one thread for repeatable sums."""

from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shared_data() -> Path:
    """Folder of real image sets beside the checkout; the test is skipped where it is absent."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real images are not beside the checkout ({folder.parent.name}/{folder.name})")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests compare numbers bit for bit, so the order of summation must not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
