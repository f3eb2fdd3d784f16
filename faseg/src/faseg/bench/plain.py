"""The decoder in the released code's form, the rival of the race: same weights, same results, more memory and time.

What the method's own modules do without stands here as the released code does it: the positional query as an
elementwise product over queries, tokens and channels; every mask at a quarter of the picture, then resized; an
attention mask for each head, also where none is used; attention's probabilities everywhere, also where nobody reads
them; all windows cut before a few are taken.

Shapes: B pictures, Q queries, C channels, K classes, h heads, N tokens of a level.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS, FINE, WINDOW = 4, 3, 8


class PlainDecoder(nn.Module):
    """Decoder of 13 layers with dynamic queries and windows; parameters have the released names.

    Args:
        classes: K, without "no object".
        width, queries, heads, hidden, layers, omega: C, Q, h, width of the feed-forward layers, their number, and the
            coarse cells for one that is kept.
        threshold: mask probability below which a query must not look.
    """

    def __init__(
        self,
        classes: int,
        width: int = 256,
        queries: int = 100,
        heads: int = 8,
        hidden: int = 2048,
        layers: int = 13,
        omega: int = 32,
        threshold: float = 0.15,
    ) -> None:
        super().__init__()
        self.heads, self.omega, self.threshold = heads, omega, threshold

        def attentions(name: str) -> nn.ModuleList:
            of_layer = [{name: nn.MultiheadAttention(width, heads), "norm": nn.LayerNorm(width)} for _ in range(layers)]
            return nn.ModuleList(map(nn.ModuleDict, of_layer))

        self.transformer_cross_attention_layers = attentions("multihead_attn")
        self.transformer_self_attention_layers = attentions("self_attn")
        self.transformer_ffn_layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "linear1": nn.Linear(width, hidden),
                    "linear2": nn.Linear(hidden, width),
                    "norm": nn.LayerNorm(width),
                }
            )
            for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.query_feat, self.query_embed = nn.Embedding(queries, width), nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.class_embed = nn.Linear(width, classes + 1)
        self.mask_embed = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(width, width) for _ in range(3))})
        self.adapt_pos2d = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(
        self, features: Sequence[Tensor], positions: Sequence[Tensor], mask_features: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, H, W) of every output, that of the raw queries first."""
        sizes = [feature.shape[-2:] for feature in features]
        values = [f.flatten(2).permute(2, 0, 1) + self.level_embed.weight[i] for i, f in enumerate(features)]
        places = [position.flatten(2).permute(2, 0, 1) for position in positions]
        batch = mask_features.shape[0]
        learned = self.query_embed.weight[:, None].repeat(1, batch, 1)
        x = self.query_feat.weight[:, None].repeat(1, batch, 1)

        classes, masks, forbidden, background = self._predict(x, mask_features, sizes[0])
        outputs = [(classes, masks)]
        pooled = _over_tokens(background.float(), places[0]) / (background.sum(-1).transpose(0, 1)[..., None] + 1e-6)
        query_pos = self.adapt_pos2d(pooled + learned)
        coarse = background
        for i in range(len(self.transformer_ffn_layers)):
            level = i % LEVELS
            forbidden = forbidden & ~forbidden.all(-1, keepdim=True)
            if level == FINE:
                x = self._look_in_windows(i, x, learned, values[FINE], places[FINE], coarse, sizes[FINE])
            else:
                keys = values[level] + places[level]
                x, attention = self._cross(i, x, query_pos, keys, values[level], forbidden)
                coarse = attention if level == 0 else coarse
            x = self._mix(i, x, query_pos)
            classes, masks, forbidden, _ = self._predict(x, mask_features, sizes[(i + 1) % LEVELS])
            outputs.append((classes, masks))
            if level != FINE:
                query_pos = self.adapt_pos2d(_over_tokens(attention, places[level]) + learned)
        return outputs

    def _predict(self, x: Tensor, mask_features: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class logits, mask logits, where each head (B * h, Q, N) must not look, and the background (B, Q, N)."""
        y = self.decoder_norm(x).transpose(0, 1)
        first, second, last = self.mask_embed["layers"].children()
        embedding = last(second(first(y).relu()).relu())
        masks = torch.einsum("bqc,bchw->bqhw", embedding, mask_features)
        seen = F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False).sigmoid().flatten(2)
        forbidden = (seen[:, None].repeat(1, self.heads, 1, 1).flatten(0, 1) < self.threshold).detach()
        return self.class_embed(y), masks, forbidden, (seen < 0.5).int().detach()

    def _cross(
        self, i: int, x: Tensor, query_pos: Tensor, keys: Tensor, values: Tensor, forbidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.transformer_cross_attention_layers[i]
        seen, attention = layer["multihead_attn"](x + query_pos, keys, values, attn_mask=forbidden)
        return layer["norm"](x + seen), attention

    def _look_in_windows(
        self, i: int, x: Tensor, learned: Tensor, values: Tensor, places: Tensor, coarse: Tensor, size: Sequence[int]
    ) -> Tensor:
        order = coarse.sum(1).sort(dim=1, descending=True).indices
        chosen = order[:, : order.shape[1] // self.omega]
        tokens, token_places = (_windows(part, size, chosen) for part in (values, places))
        return self._cross(i, x, learned, tokens + token_places, tokens, None)[0]

    def _mix(self, i: int, x: Tensor, query_pos: Tensor) -> Tensor:
        layer: Any = self.transformer_self_attention_layers[i]
        query = x + query_pos
        x = layer["norm"](x + layer["self_attn"](query, query, x)[0])
        layer = self.transformer_ffn_layers[i]
        return layer["norm"](x + layer["linear2"](layer["linear1"](x).relu()))


def _over_tokens(weights: Tensor, places: Tensor) -> Tensor:
    """Sum of the tokens' places (N, B, C) under weights (B, Q, N), written out: (Q, B, C)."""
    return (weights.permute(1, 2, 0)[..., None] * places[None]).sum(1)


def _windows(tokens: Tensor, size: Sequence[int], chosen: Tensor) -> Tensor:
    """The chosen (B, n) windows of a map's tokens (N, B, C), all of which are cut: (n * 64, B, C)."""
    batch, width = tokens.shape[1:]
    rows, columns = (length // WINDOW for length in size)
    cut = tokens.permute(1, 2, 0).reshape(batch, width, rows, WINDOW, columns, WINDOW)
    cut = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, WINDOW * WINDOW, width)
    index = chosen[:, :, None, None].expand(-1, -1, *cut.shape[2:])
    return cut.gather(1, index).flatten(1, 2).transpose(0, 1)
