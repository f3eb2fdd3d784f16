"""How each kind of reference file is recomputed: the table behind `ptq4dm verify FILE...`."""

from paperkit.verification.verify import Kind
from ptq4dm.verification import networks, quantizers, reconstruction, sampling

_RECONSTRUCTION = ("ch", "N", "iters", "w_bits", "w_channel_wise", "a_bits", "weight_stage", "act_stage", "order")
_SCHEDULE = ("linear_start", "linear_end", "steps", "eta")

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
    "collect_and_sample": Kind(
        sampling.collect_and_sample, 1e-4, options=(*_SCHEDULE, "guidance", "B", "N", "net"),
        requires=("in.x_T", "in.W", "in.W_q", "in.b_q", "in.context", "in.collect_noise"), limits={"steps": 1000},
    ),
    "corrected_ddim_step": Kind(
        sampling.corrected_ddim_step, 1e-5, options=("linear_start", "linear_end", "steps", "cases"),
        results=("cases.*.t", "cases.*.sigma", "cases.*.excess_variance", "cases.*.branch"), config_tolerance=1e-5,
        requires=("in.k", "in.bias", "in.residual_std", "in.timesteps"), limits={"steps": 1000, "cases.*.t": 1000},
    ),
    "ddim_schedule": Kind(sampling.ddim_schedule, 1e-5, options=None, limits={"*.steps": 1000}),
    "metrics": Kind(
        sampling.metrics, 1e-4, options=("is_split_size",), requires=("in.a", "in.b", "in.probs"),
        limits={"is_split_size": 10**6},
    ),
    "noise_statistics": Kind(
        sampling.noise_statistics, 1e-5, options=("note",), requires=("in.eps_fp", "in.delta", "in.t"),
    ),
    "unet": Kind(networks.unet, 1e-5, options=networks.UNET_OPTIONS, requires=("in.x", "in.t", "out.y", "sd.*")),
}  # fmt: skip
