"""FASeg's transformer decoder: Mask2Former's, with focus-aware positional queries and high-resolution attention.

Layer i attends to level i mod 4, coarse to fine (strides 32, 16, 8, 4). On the first three levels each query looks
where its last mask was likely; then its positional query moves to where it looked (`dfpq`). On the finest level the
queries look into the windows that the 1/32 layer found important (`hrca`). With both off the decoder is Mask2Former's.

Shapes: B batch, Q queries, K classes, C channels, M channels of the mask features, level l of size H_l x W_l = N_l.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faseg.method.attention import reset_full_rows
from faseg.method.decoder_layers import CrossAttention, FeedForward, SelfAttention
from faseg.method.dfpq import InitialPool, initial_focus, position_mlp
from faseg.method.hrca import check_omega, choose_windows, gather_windows
from faseg.method.prediction_heads import Prediction, PredictionHeads, forbidden, resized_features
from paperkit.errors import UserError

QueryPosition = Literal["dfpq", "learned"]
Masks = Literal["all", "last", "none"]


@dataclass(frozen=True)
class LayerTrace:
    """What a layer did, for figures and checks; no gradient.

    Attributes:
        level: 0 to 3. query_pos: (B, Q, C), used in its cross-attention. attention: (B, Q, N), averaged over heads; of
            a high-resolution layer over its tokens. cells: (B, k), chosen coarse cells of a high-resolution layer.
        tokens: (B, T, C), its tokens with the level's embedding. cross_out, output: (B, Q, C), of the cross-attention
            and of the layer.
    """

    level: int
    query_pos: Tensor
    attention: Tensor
    cross_out: Tensor
    output: Tensor
    cells: Tensor | None = None
    tokens: Tensor | None = None


class Decoder(PredictionHeads):
    """The 13-layer decoder; defaults are FASeg's of ADE20K.

    Args:
        num_classes: K, without "no object".
        hidden_dim: C. in_channels: of the features, projected by 1x1 convolutions where they are not C.
        mask_dim: M, by default C. num_queries: Q. nheads, dim_feedforward, layers: sizes.
        query_pos: "dfpq", or "learned" as in Mask2Former.
        hrca: whether there is a fourth, finest level; without it there are three, as in Mask2Former.
        omega: a high-resolution layer keeps 1 in `omega` windows; 1 keeps all.
        min_windows: least number of windows. The authors' 0 leaves pictures of fewer than `omega` cells without any.
        hrca_query_pos: position of the queries in the high-resolution cross-attention: the "learned" one, or "dfpq".
        attn_threshold: least mask probability where a query may look; Mask2Former has 0.5.
        init_pool: over what the first layer's positional query is pooled, see `dfpq.initial_focus`.
        enforce_input_project: 1x1 convolutions on the features also where `in_channels` is C.

    How the keys' positions are made (conditional, sine, learned) is an option of what gives them: the pixel decoder.

    Raises:
        UserError: for options that do not go together.
    """

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int = 256,
        in_channels: int | None = None,
        mask_dim: int | None = None,
        num_queries: int = 100,
        nheads: int = 8,
        dim_feedforward: int = 2048,
        layers: int = 13,
        query_pos: QueryPosition = "dfpq",
        hrca: bool = True,
        omega: int = 32,
        min_windows: int = 0,
        hrca_query_pos: QueryPosition = "learned",
        attn_threshold: float = 0.15,
        init_pool: InitialPool = "background",
        enforce_input_project: bool = False,
    ) -> None:
        super().__init__(hidden_dim, mask_dim or hidden_dim, num_classes)
        check_omega(omega)
        if min(num_queries, layers) < 1:
            raise UserError(f"num_queries {num_queries}, layers {layers}: give 1 or more of each")
        if not 0 <= attn_threshold < 1:
            raise UserError(f"attn_threshold {attn_threshold} is no probability below 1")
        if hrca and query_pos == "learned" and hrca_query_pos == "dfpq":
            raise UserError("hrca_query_pos dfpq needs query_pos dfpq")
        in_channels = in_channels or hidden_dim
        projects = enforce_input_project or in_channels != hidden_dim
        self.levels = 4 if hrca else 3
        self.hrca, self.omega, self.min_windows, self.hrca_query_pos = hrca, omega, min_windows, hrca_query_pos
        self.attn_threshold, self.init_pool = attn_threshold, init_pool
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.levels, hidden_dim)
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_dim, 1) if projects else nn.Identity() for _ in range(self.levels)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(hidden_dim, nheads) for _ in range(layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(hidden_dim, nheads) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(hidden_dim, dim_feedforward) for _ in range(layers))
        self.adapt_pos2d = position_mlp(hidden_dim) if query_pos == "dfpq" else None

    def forward(
        self,
        features: Sequence[Tensor],
        positions: Sequence[Tensor],
        mask_features: Tensor,
        masks: Masks = "all",
        trace: list[LayerTrace] | None = None,
    ) -> dict[str, Any]:
        """Predictions of the last layer, and as `aux_outputs` those of the raw queries and the layers before.

        Args:
            features: maps (B, C_in, H_l, W_l), coarse to fine; a fourth is left unread without `hrca`.
            positions: maps (B, C, H_l, W_l) of the keys, of the same sizes.
            mask_features: F, (B, M, H, W).
            masks: which outputs get `pred_masks`: "all"; "last" (inference: the earlier predictions are not made at
                all); "none" (losses that sample `mask_features` at points and multiply with `mask_embeddings`).
            trace: a list that gets one entry a layer.

        Returns:
            `pred_logits` (B, Q, K + 1), `mask_embeddings` (B, Q, M), `pred_masks` (B, Q, H, W) where asked for, and
            `aux_outputs`, a list of such dicts.
        """
        predictions = self.outputs(features, positions, mask_features, masks != "last", trace)
        outputs = []
        for prediction in predictions:
            output = {"pred_logits": prediction.logits, "mask_embeddings": prediction.embeddings}
            if masks != "none":
                output["pred_masks"] = prediction.masks(mask_features)
            outputs.append(output)
        return {**outputs[-1], "aux_outputs": outputs[:-1]}

    def outputs(
        self,
        features: Sequence[Tensor],
        positions: Sequence[Tensor],
        mask_features: Tensor,
        every: bool = True,
        trace: list[LayerTrace] | None = None,
    ) -> list[Prediction]:
        """Predictions from the raw queries and of each layer, as losses take them: no full mask is made.

        Args:
            features, positions, mask_features, trace: as in `forward`. every: False for the last layer's alone.
        """
        _check_maps(features, positions, self.levels)
        sizes = [f.shape[-2:] for f in features]
        places = [p.flatten(2).transpose(1, 2) for p in positions[:3]]
        values = [self._tokens(f.flatten(2).transpose(1, 2), level) for level, f in enumerate(features[:3])]
        keys = [v + p for v, p in zip(values, places, strict=True)]
        resized = [resized_features(mask_features, size) for size in sizes[:3]]
        batch = mask_features.shape[0]
        learned = self.query_embed.weight.expand(batch, -1, -1)
        x = self.query_feat.weight.expand(batch, -1, -1)
        predictions = [self.predict(x)] if every else []
        logits = self.level_logits(x, resized[0])
        query_pos = learned
        if self.adapt_pos2d is not None:
            query_pos = self.adapt_pos2d((initial_focus(logits, places[0], self.init_pool) + learned).to(learned.dtype))
        cells = torch.empty(0)
        layers = len(self.transformer_cross_attention_layers)
        for i in range(layers):
            level, last = i % self.levels, i + 1 == layers
            cross = self.transformer_cross_attention_layers[i]
            tokens = None
            if level == 3:
                used = learned if self.hrca_query_pos == "learned" else query_pos
                tokens = self._tokens(gather_windows(features[3], cells, sizes[0]), 3)
                key = tokens + gather_windows(positions[3], cells, sizes[0])
                attended = cross(x, used, key, tokens, want_map=trace is not None)
            else:
                used = query_pos
                mask = reset_full_rows(forbidden(logits, self.attn_threshold))
                moves = self.adapt_pos2d is not None and not last
                scored = self.hrca and level == 0 and i + 3 < layers
                attended = cross(
                    x, used, keys[level], values[level], mask,
                    positions=places[level] if moves else None, want_map=scored or trace is not None,
                )  # fmt: skip
                if scored:
                    cells = choose_windows(attended.map, self.omega, self.min_windows)
            x = self.transformer_self_attention_layers[i](attended.values, query_pos)
            x = self.transformer_ffn_layers[i](x)
            if trace is not None:
                seen = [t.detach() for t in (used, attended.map, attended.values, x)]
                fine = (cells, tokens.detach()) if tokens is not None else ()
                trace.append(LayerTrace(level, *seen, *fine))
            if every or last:
                predictions.append(self.predict(x))
            if not last and (following := (i + 1) % self.levels) < 3:
                logits = self.level_logits(x, resized[following])
            if self.adapt_pos2d is not None and attended.focus is not None:
                query_pos = self.adapt_pos2d((attended.focus + learned).to(learned.dtype))
        return predictions

    def _tokens(self, x: Tensor, level: int) -> Tensor:
        """Projected tokens with the level's embedding: (B, N, C_in) -> (B, N, C)."""
        project = self.input_proj[level]
        if isinstance(project, nn.Conv2d):
            x = F.linear(x, project.weight.flatten(1), project.bias)
        return x + self.level_embed.weight[level]


def _check_maps(features: Sequence[Tensor], positions: Sequence[Tensor], levels: int) -> None:
    if len(features) < levels or len(positions) < levels:
        raise UserError(
            f"{len(features)} feature maps and {len(positions)} of positions; the decoder has {levels} levels"
        )
    for level, (f, p) in enumerate(zip(features[:levels], positions, strict=False)):
        if f.shape[-2:] != p.shape[-2:]:
            raise UserError(f"level {level}: features of {tuple(f.shape[-2:])}, positions of {tuple(p.shape[-2:])}")
