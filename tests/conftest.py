"""Fixtures shared by all tests: real images beside the checkout, one thread for repeatable sums."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Give each of several test processes a core of its own: threads that share one wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


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
