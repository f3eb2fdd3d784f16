"""Names of the networks, without timm: its registry is filled from here while timm itself is still being imported."""

ARCHITECTURES = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "nest_tiny_jx",
    "nest_small_jx",
    "pvt_v2_b1",
)
"""Those of table 3 that timm has weights of (of CvT-13 it has no network), and DeiT-S, which the paper leaves out."""
VARIANTS = {
    "bivit": ("bivit", "w1a32"),
    "bivit_w1a1": ("bivit", "w1a1"),
    "bibert": ("bibert", "w1a32"),
    "bibert_w1a1": ("bibert", "w1a1"),
}
"""Ending of a registered name -> method of `bivit.models.binarize.METHODS`, and bits of the MLPs."""
