"""The kinds of reference file that `snnet verify` knows, and the code that computes each again."""

from paperkit.verification.verify import Kind
from snnet.models.released_networks import RELEASED
from snnet.verification import plain, staged

_RESULTS = ("configs", "num_configs", "stitching_map_id", "num_stitches")
_VIT = {"dims", "heads", "depth", "img_size", "patch_size", "num_classes", "mlp_ratio", "norm_eps"}
_STITCH = {"kernel_size", "stride", "nearest_stitching"}
_STAGED = {"anchors", "img_size", "num_classes"}
_NEEDED = ("in.x", "out.logits", "sd.*")
_CONVOLUTIONAL = Kind(
    staged.convolutional,
    plain.network_tolerance,
    _RESULTS,
    _STAGED | {"stem_channels", "channels", "cnn_to_vit"},
    _NEEDED,
)

KINDS: dict[str, Kind] = {
    "vit": Kind(plain.plain_vit, plain.network_tolerance, _RESULTS, _VIT | _STITCH, _NEEDED),
    "vit_train_steps": Kind(
        plain.training_steps,
        1e-4,
        ("sampled_ids", "num_configs"),
        _VIT | _STITCH | {"optimizer", "alpha", "distillation", "numpy_seed"},
        ("sd.*", "config.sampled_ids"),
    ),
    "distill_loss": Kind(plain.losses, 1e-6, options={"B", "C", "naming"}),
    "least_squares": Kind(plain.least_squares, plain.least_squares_tolerance, options={"cases"}),
    "enumeration_grid": Kind(
        plain.enumeration,
        0.0,
        (
            *(f"plain.*.{key}" for key in ("pairs", "layer_of_pair", "num_layers", "configs")),
            *(f"stage.*.{key}" for key in ("configs", "num_layers")),
            *(f"unpaired.*.{key}" for key in ("pairs", "layer_of_pair", "num_layers", "end_mapping")),
        ),
        options=(),
    ),
    "swin": Kind(
        staged.swin,
        plain.network_tolerance,
        _RESULTS,
        _STAGED | {"patch_size", "window_size", "mlp_ratio", "norm_eps"},
        _NEEDED,
    ),
    "levit": Kind(
        staged.levit,
        plain.network_tolerance,
        _RESULTS,
        _STAGED | {"depth", "attn_ratio", "mlp_ratio", "down_attn_ratio", "down_mlp_ratio"},
        _NEEDED,
    ),
    "resnet_resnet": _CONVOLUTIONAL,
    "resnet_swin": _CONVOLUTIONAL,
    "released_configurations": Kind(staged.released_configurations, 0.0, ("*.configs",), options=RELEASED),
    "released_keys": Kind(staged.released_keys, 0.0, ("*",), options=staged.KEY_LISTS),
}
