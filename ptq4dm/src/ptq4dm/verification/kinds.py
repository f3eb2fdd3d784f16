"""How each kind of reference file is recomputed: the table behind `ptq4dm verify FILE...`."""

from paperkit.verification.verify import Kind
from ptq4dm.verification import networks, quantizers, reconstruction

_RECONSTRUCTION = ("ch", "N", "iters", "w_bits", "w_channel_wise", "a_bits", "weight_stage", "act_stage", "order")

KINDS: dict[str, Kind] = {
    "adaround": Kind(quantizers.adaround, 1e-5, options=None, limits={"*.t_max": 10**7}),
    "uniform_affine_quantizer": Kind(quantizers.uniform_affine_quantizer, 1e-5, options=None, requires=("in.*.x",)),
    "quant_module": Kind(quantizers.quant_module, 1e-5, options=None, requires=("in.*.x_init",)),
    "quant_blocks": Kind(reconstruction.quant_blocks, 1e-4, options=None, results=("*.quantised",)),
    "quant_unet": Kind(
        reconstruction.quant_unet, 1e-4, options=("official", "norm_num_groups", "w_bits", "a_bits"),
        requires=("in.x_init", "sd.model.*"), limits={"official.*": 4096},
    ),
    "reconstruction": Kind(
        reconstruction.reconstruction, 1e-5, options=(*_RECONSTRUCTION, "model"), requires=("in.x", "sd.a.weight"),
        limits={"iters": 20_000, "*": 4096},
    ),
    "unet": Kind(networks.unet, 1e-5, options=networks.UNET_OPTIONS, requires=("in.x", "in.t", "out.y", "sd.*")),
}  # fmt: skip
