"""`binarize(model, config)`: any timm ViT, DeiT, Swin, NesT or PVTv2 with attention and MLP of one bit."""

from dataclasses import dataclass
from typing import Literal

from bivit.method.sign import Zero
from bivit.method.softmax_aware import Backward

AttentionRule = Literal["sab", "bool", "naive", "elastic", "float"]
Bits = Literal["w1a1", "w1a32", "w32a1", "float"]


@dataclass(frozen=True)
class BinaryConfig:
    """What becomes binary, and by which rules.

    Attributes:
        attention: rule of the attention scores: "sab" (the paper), "bool" (BiBERT), "naive", "elastic" (BiT); "float"
            leaves attention modules as they are.
        attention_linear: rule of qkv and proj, a name of `bivit.method.binary_linear.RULES`.
        attention_bits: "w1a1", or "w32a1" (first of the classical two steps).
        mlp: "w1a1", "w1a32", "w32a1" or "float" (first stage of CLB).
        mlp_linear: rule of fc1 and fc2.
        activation: between them: "gelu", "relu" (BiT) or "rprelu" (ReActNet).
        beta: SAB's share of the row's maximum. backward: SAB's gradient.
        normalize: "count" divides a row's sum by its number of active keys (ours; the sign after it is the same, the
            gradient is not).
        v_scale: multiplies a row's sum by v, the mean of its active scores (equation 7; optional in the paper).
        zero: sign(0) of all inputs, "ternary" (released) or "plus" (one bit can hold it).
        thresholds: a learned threshold per channel before the sign of every linear (RSign; ours).
        depth: share of the blocks, from the input on, that are binarized.
    """

    attention: AttentionRule = "sab"
    attention_linear: str = "pws"
    attention_bits: Literal["w1a1", "w32a1"] = "w1a1"
    mlp: Bits = "w1a32"
    mlp_linear: str = "pws"
    activation: Literal["gelu", "relu", "rprelu"] = "gelu"
    beta: float = 0.25
    backward: Backward = "softmax"
    normalize: Literal["none", "count"] = "none"
    v_scale: bool = False
    zero: Zero = "ternary"
    thresholds: bool = False
    depth: float = 1.0


METHODS: dict[str, BinaryConfig] = {
    "bivit": BinaryConfig(),
    "bivit_mean": BinaryConfig(attention_linear="mean", mlp_linear="mean"),
    "naive": BinaryConfig(attention="naive"),
    "bibert": BinaryConfig("bool", "mean", mlp_linear="mean"),
    "bibert_original": BinaryConfig("bool", "bibert", mlp_linear="bibert"),
    "bit": BinaryConfig("elastic", "bit", mlp_linear="bit", activation="relu"),
    "bit_gelu": BinaryConfig("elastic", "bit_channels", mlp_linear="bit_channels"),
    "xnor": BinaryConfig("bool", "xnor", mlp_linear="xnor"),
    "bireal": BinaryConfig("bool", "bireal", mlp_linear="bireal"),
    "reactnet": BinaryConfig("bool", "reactnet", mlp_linear="reactnet", activation="rprelu"),
}
"""Methods by name, with W1A32 MLPs; `dataclasses.replace(METHODS["bivit"], mlp="w1a1")` and so on.

"bibert" is the released baseline attention (bool scores, mean scale); "bibert_original" has the gradients of BiBERT's
own code. "bit_gelu" is the BiT of the embedded experiment: GELU kept, mean scale per channel. The binary networks for
images (xnor, bireal, reactnet) say nothing of attention and get BiBERT's scores here."""
