"""Networks are recomputed in the order of sums of the files: attention as the authors have it, on one thread."""

import pytest
import torch

from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_model import QuantConfig, act_quantizers, initialise_ranges, quantize
from ptq4dm.models.latent_diffusion import UNetOptions, build_unet
from ptq4dm.verification.attention_order import use_authors_order
from ptq4dm.verification.reconstruction import one_thread

COMMON = {"in_channels": 3, "out_channels": 3, "model_channels": 16, "num_res_blocks": 1, "channel_mult": [1, 2]}
CHURCHES = {"image_size": 16, "attention_resolutions": [1], "num_heads": 2, "use_scale_shift_norm": True}
OPTIONS = {
    "churches": COMMON | CHURCHES | {"resblock_updown": True},
    "cin": COMMON
    | {"image_size": 8, "attention_resolutions": [2], "num_heads": 2, "context_dim": 6}
    | {"use_spatial_transformer": True, "transformer_depth": 1},
}


@pytest.mark.parametrize("style", list(OPTIONS))
def test_quantised_networks_agree_where_rounding_is_finer(style: str) -> None:
    """In float32 one code of a layer may flip and change the steps behind it by a per cent; in float64 none does."""
    torch.manual_seed(0)
    unet = quantize(build_unet(UNetOptions.of_official(OPTIONS[style], 8)).eval().double(), QuantConfig(4, 8))
    size = OPTIONS[style]["image_size"]
    context = torch.randn(4, 1, 6).double() if style == "cin" else None
    records = Records(torch.randn(4, 3, size, size).double(), torch.tensor([1, 250, 600, 999]), context)
    found = []
    for authors in (False, True):
        if authors:
            use_authors_order(unet)
        initialise_ranges(unet, records, 4)
        steps = torch.stack([quantizer.delta.detach() for quantizer in act_quantizers(unet).values()])
        found.append((predict(unet, records).detach(), steps))
    for fused, theirs in zip(*found, strict=True):
        assert fused.dtype == torch.float64
        torch.testing.assert_close(theirs, fused, rtol=1e-9, atol=1e-9)


def test_networks_are_recomputed_on_one_thread() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
