"""The views check: what is written down holds here, and a change of views, draws, order or masks is noticed."""

import pytest
import torch

from ssl_ft.data.views import make_views
from ssl_ft.doctor import views

CPU = torch.device("cpu")


def test_what_is_written_down_holds():
    found = f"DRAWS_DIGEST {views.draws_digest()}, VIEW_MEANS {views.view_means(CPU, torch.float64)}"
    assert views.check_views(CPU).verdict == "pass", f"where a change of views was meant, write down: {found}"


def test_views_that_differ_a_little_fail(monkeypatch):
    monkeypatch.setattr(views, "make_views", lambda *args, **more: make_views(*args, **more) ** 1.0001)
    finding = views.check_views(CPU)
    assert finding.verdict == "fail"
    assert "views differ" in finding.measured


def test_a_device_that_computes_otherwise_fails(monkeypatch):
    def coarse(*args: object, dtype: torch.dtype, **more: object) -> torch.Tensor:
        found: torch.Tensor = make_views(*args, dtype=dtype, **more)  # type: ignore[arg-type]
        return found if dtype == torch.float64 else found * 1.02

    monkeypatch.setattr(views, "make_views", coarse)
    finding = views.check_views(CPU)
    assert finding.verdict == "fail"
    assert "float32 views on cpu" in finding.measured


@pytest.mark.parametrize("name", ["batch_indices", "uniform", "sample_mask"])
def test_another_order_draw_or_mask_fails(monkeypatch, name):
    whole = getattr(views, name)

    def other_seed(*args: object, seed: int, **more: object) -> object:
        return whole(*args, seed=seed + 1, **more)

    monkeypatch.setattr(views, name, other_seed)
    finding = views.check_views(CPU)
    assert finding.verdict == "fail"
    assert "order, draws or masks" in finding.measured
