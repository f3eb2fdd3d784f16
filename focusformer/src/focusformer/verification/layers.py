"""Reference files of the supernet's layers, recomputed: every slice, forward, backward and counted."""

from typing import Any

import torch
from torch import Tensor, nn

from focusformer.method.architecture import SuperSizes
from focusformer.method.attention import ElasticAttention
from focusformer.method.cost import attention_flops, block_flops, linear_params, patch_embedding_flops
from focusformer.method.elastic import ElasticLayerNorm, ElasticLinear, ElasticPatchEmbedding, ElasticQkv
from focusformer.method.relative_position import RelativePosition2d
from focusformer.method.supernet import Block
from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import check_options

Computed = dict[str, Any]
HEAD_DIM = 64
"""Of the released code, whatever its sizes, with `change_qkv`."""
RESCALING = {"plain": False, "scaled": True}


def count(value: float) -> Tensor:
    """A count as a tensor: of int64, or of float64 where halves are counted."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def gradients(file: ReferenceFile, case: str, loss: Tensor, places: dict[str, Tensor]) -> Computed:
    """`grad.NAME.CASE` of a loss, for the inputs and parameters that the file names."""
    wanted = [name.removesuffix(f".{case}") for name in file.gradients if name.endswith(f".{case}")]
    wanted = [name for name in wanted if name in places]
    if not wanted:
        return {}
    found = torch.autograd.grad(loss, [places[name] for name in wanted], materialize_grads=True)
    return {f"grad.{name}.{case}": value for name, value in zip(wanted, found, strict=True)}


def of_cotangent(file: ReferenceFile, case: str, y: Tensor, layer: nn.Module, **inputs: Tensor) -> Computed:
    """`gradients` of sum(y * cotangent)."""
    if not any(name.endswith(f".{case}") for name in file.gradients):
        return {}
    loss = (y * file.inputs[f"cotangent.{case}"]).sum()
    return gradients(file, case, loss, {**inputs, **dict(layer.named_parameters())})


def input_of(file: ReferenceFile, case: str) -> Tensor:
    """`in.x.CASE`, with a gradient."""
    return file.inputs[f"x.{case}"].clone().requires_grad_()


def _loaded(layer: nn.Module, state: dict[str, Tensor]) -> Any:
    layer.to(next(iter(state.values())).dtype)
    load_strict(layer, state, "the state dict")
    return layer


def _linear(file: ReferenceFile, build: type[ElasticLinear]) -> Computed:
    c, computed = file.config, Computed()
    bias = "bias" in file.state
    for rescaling, scale in RESCALING.items():
        layer = _loaded(build(c["super_in_dim"], c["super_out_dim"], bias, scale), file.state)
        for i, (inputs, outputs) in enumerate(c["cases"]):
            if inputs > c["super_in_dim"] or outputs > c["super_out_dim"]:
                raise UserError(f"case {inputs}, {outputs} is above {c['super_in_dim']}, {c['super_out_dim']}")
            case = f"{i}.{rescaling}"
            x = input_of(file, case)
            y = layer(x, outputs)
            computed |= {f"out.y.{case}": y, f"out.params.{case}": count(linear_params(inputs, outputs, bias))}
            computed |= of_cotangent(file, case, y, layer, x=x)
            for name in file.outputs:  # out.flops_seq7: on 7 tokens
                if name.startswith("flops_seq") and name.endswith(f".{case}"):
                    tokens = int(name.removeprefix("flops_seq").split(".")[0])
                    computed[f"out.{name}"] = count(float(tokens * inputs * outputs))
    return computed


def linear_super(file: ReferenceFile) -> Computed:
    """A linear by plain slices."""
    return _linear(file, ElasticLinear)


def qkv_super(file: ReferenceFile) -> Computed:
    """Queries, keys and values by interleaved rows and a contiguous bias."""
    return _linear(file, ElasticQkv)


def layernorm_super(file: ReferenceFile) -> Computed:
    """Layer norm over the kept channels."""
    c, computed = file.config, Computed()
    layer = _loaded(ElasticLayerNorm(c["super_embed_dim"], c.get("eps", 1e-5)), file.state)
    for i, _ in enumerate(c["cases"]):
        x = input_of(file, str(i))
        y = layer(x)
        computed |= {f"out.y.{i}": y, **of_cotangent(file, str(i), y, layer, x=x)}
    return computed


def patch_embed_super(file: ReferenceFile) -> Computed:
    """Patches to tokens of the first channels."""
    c, computed, x = file.config, Computed(), file.inputs["x"].clone().requires_grad_()
    patches, values = (c["img_size"] // c["patch_size"]) ** 2, c["in_chans"] * c["patch_size"] ** 2
    for rescaling, scale in RESCALING.items():
        layer = _loaded(ElasticPatchEmbedding(c["patch_size"], c["in_chans"], c["embed_dim"], scale), file.state)
        for i, embed in enumerate(c["cases"]):
            case = f"{i}.{rescaling}"
            y = layer(x, embed)
            computed |= {
                f"out.y.{case}": y,
                f"out.params.{case}": count(linear_params(values, embed)),
                f"out.flops.{case}": count(float(patch_embedding_flops(embed, patches, values))),
                **of_cotangent(file, case, y, layer, x=x),
            }
    return computed


def relative_position_2d(file: ReferenceFile) -> Computed:
    """The materialised embedding."""
    c, computed = file.config, Computed()
    layer = _loaded(RelativePosition2d(c["num_units"], c["max_relative_position"]), file.state)
    for i, (width, tokens) in enumerate(c["cases_head_dim_and_length"]):
        embedding = layer(tokens, width)
        computed |= {
            f"out.emb.{i}": embedding,
            f"out.params.{i}": count(2 * len(layer.embeddings_table_v) * width),
            **of_cotangent(file, str(i), embedding, layer),
        }
    return computed


def attention_super(file: ReferenceFile) -> Computed:
    """Attention of several option sets, each with several slices."""
    c, computed = file.config, Computed()
    width = c["super_embed_dim"] // c["num_heads"]
    for i, options in enumerate(c["cases"]):
        check_options(options, ("rel", "change_qkv", "fc_scale", "qkv_bias", "subs"), f"cases.{i}")
        state = file.part(f"sd.{i}.")
        clip = c["max_relative_position"] if options["rel"] else None
        layer = ElasticAttention(
            c["super_embed_dim"],
            width,
            width,
            clip,
            change_qkv=options["change_qkv"],
            qkv_bias="qkv.bias" in state,
            scale=options.get("fc_scale", False),
        )
        _loaded(layer, state)
        for j, (embed, heads) in enumerate(options["subs"]):
            case = f"{i}.{j}"
            x = input_of(file, case)
            y = layer(x, heads)
            computed |= {
                f"out.y.{case}": y,
                f"out.softmax_scale.{case}": layer.softmax_scale(embed, heads),
                f"out.flops.{case}": count(float(attention_flops(x.shape[1], embed, layer.q(heads), clip))),
                **of_cotangent(file, case, y, layer, x=x),
            }
    return computed


def encoder_layer(file: ReferenceFile) -> Computed:
    """One block for several widths, heads and ratios."""
    c, computed = file.config, Computed()
    change_qkv = c.get("change_qkv", True)
    sizes = SuperSizes(
        embed=c["dim"],
        depth=1,
        heads=c["num_heads"],
        ratio=c["mlp_ratio"],
        head_dim=HEAD_DIM if change_qkv else c["dim"] // max(c["num_heads"], 1),
        change_qkv=change_qkv,
        max_relative_position=c["max_relative_position"],
        relative_position=any("rel_pos_embed" in name for name in file.state),
        qkv_bias="attn.qkv.bias" in file.state,
        pre_norm=c.get("pre_norm", True),
        scale=c.get("scale", False),
    )
    layer = _loaded(Block(sizes), file.state)
    clip = sizes.max_relative_position if sizes.relative_position else None
    for i, (embed, heads, ratio) in enumerate(c["cases_embed_heads_ratio"]):
        x = input_of(file, str(i))
        y = layer(x, heads, ratio)
        hidden = int(embed * ratio)
        computed |= {
            f"out.y.{i}": y,
            f"out.flops.{i}": count(float(block_flops(x.shape[1], embed, sizes.q(heads), hidden, clip))),
            **of_cotangent(file, str(i), y, layer, x=x),
        }
    return computed
