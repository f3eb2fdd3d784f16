"""Names of networks, without timm: its registry is filled from here while timm itself is still being imported."""

FILES = {
    "autoformer_tiny": ("supernet-tiny.pth", "ti"),
    "autoformer_small": ("supernet-small.pth", "s"),
    "autoformer_base": ("supernet-base.pth", "b"),
}
"""Name of a network -> the released file that holds it (release v1.0 of AutoFormer-model-zoo), and its space."""
ALSO = {"autoformer-t": "autoformer_tiny", "autoformer-s": "autoformer_small", "autoformer-b": "autoformer_base"}
"""The paper's own names."""
SUBNET = "focusformer_subnet"
"""timm's name of any other sub-network."""
