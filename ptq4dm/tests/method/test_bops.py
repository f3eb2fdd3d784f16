"""Operations and bytes of the paper's three networks, on the meta device."""

import pytest
import torch

from ptq4dm.method.bops import Cost, count_cost
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import FIRST_LAST, QuantConfig
from ptq4dm.models.latent_diffusion import unet_on_meta


def cost(name: str, weight_bits: int, skip_bits: int | None = None) -> Cost:
    unet = unet_on_meta(name)
    options = unet.config
    x = torch.zeros(2, options.in_channels, options.sample_size, options.sample_size)  # two: the batch is divided out
    context = torch.zeros(2, 1, 512) if name == "cin256-v2" else None
    return count_cost(unet, Records(x, torch.ones(2), context), QuantConfig(weight_bits, 8, skip_bits=skip_bits))


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "products", "shares"),
    [
        ("cin256-v2", 400.92, (99.77, 95.90), 4.45, (25.9, 13.8, 27.7, 15.6)),
        ("lsun_beds256", 274.06, (96.02, 83.30), 5.18, (29.4, 19.2, 38.3, 28.1)),
        ("lsun_churches256", 294.97, (18.64, 16.12), 2.28, (27.5, 16.3, 32.7, 21.5)),
    ],
)
def test_tables(name: str, parameters: float, macs: tuple[float, float], products: float, shares: tuple) -> None:
    w8, w4 = cost(name, 8), cost(name, 4)
    assert w4.parameters / 1e6 == pytest.approx(parameters, abs=0.006)
    assert (w4.layer_macs / 1e9, w4.quantised_macs / 1e9) == pytest.approx(macs, abs=0.012)
    assert w4.products / 1e9 == pytest.approx(products, abs=0.01)
    found = [100 * one.bytes(rest) / one.float_bytes() for rest in (16, 32) for one in (w8, w4)]
    assert found == pytest.approx(shares, abs=0.1)


def test_nominal_and_exact() -> None:
    w4 = cost("cin256-v2", 4)
    assert w4.float_bops(products=False) / 1e12 == pytest.approx(102.2, abs=0.05)
    assert w4.nominal() * 32 == w4.float_bops(products=False)
    assert w4.float_bytes() / 1e6 == pytest.approx(1603.7, abs=0.05)
    assert w4.exact() / 1e12 == pytest.approx(11.6, abs=0.05)
    nominal, exact = w4.mean([8, 4])
    assert nominal == pytest.approx(w4.nominal() * 0.75) and exact < w4.exact()
    assert cost("lsun_beds256", 8, skip_bits=8).bytes() < 0.26 * w4.parameters * 4


def test_a_schedule_leaves_the_first_and_last_layers_at_their_bits() -> None:
    """Also where the others have the same bits."""
    w8 = cost("cin256-v2", 8)
    scheduled = w8.quantised_macs - sum(w8.layers[name].macs for name in FIRST_LAST)
    assert w8.exact() - w8.exact(4) == scheduled * 8 * (8 - 4)
