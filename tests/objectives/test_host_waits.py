"""A step on a GPU asks for its work without waiting for any of it: views, masks and the loss of every kind."""

import pytest
import torch

from ssl_ft.build.objectives import build_objective
from ssl_ft.config import PretrainSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.views import ViewRecipe
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.models.visible import visible_places
from tests.pipelines.training import CASES
from tests.pools import batch_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", [case for case, own in CASES.items() if own["objective"] != "supervised"])
def test_no_step_makes_the_host_wait(case):
    settings = PretrainSettings.model_validate({**CASES[case], "batch_size": 8})
    given, size = settings.encoder, settings.size
    assert size is not None, "cases say their size"
    spec = EncoderSpec(given.name, 3, size, given.stem_stride, given.patch_size, dict(given.args))
    recipe = ViewRecipe(size, blur=0.5)
    views = ViewMaker(recipe, (0.5, 0.4, 0.3), (0.2, 0.3, 0.2), 0)
    device = torch.device("cuda")
    objective = build_objective(settings, build_encoder(spec, seed=0), views, device)
    batch = batch_of(8, side=size).to(device)
    objective(batch).total.backward()  # constants are copied once, kernels chosen
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective(batch).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_known_number_of_hidden_patches_is_taken_at_its_word():
    mask = torch.tensor([[True, False, True, False], [False, True, True, False]])
    assert visible_places(mask, num_hidden=2).tolist() == visible_places(mask).tolist() == [[1, 3], [0, 3]]
