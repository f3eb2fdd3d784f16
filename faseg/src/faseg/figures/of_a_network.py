"""What a trained network does on one picture: figures 1 to 5 for networks of `faseg.models.faseg`.

Shapes: Q queries, K classes, H x W the picture, H_l x W_l the map of level l.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from faseg.figures.consistency import draw_consistency, map_overlap
from faseg.figures.layer_maps import as_map, on_coarse_grid
from faseg.figures.map_grid import draw_maps, similarity
from faseg.figures.windows import draw_windows
from faseg.method.decoder import LayerTrace
from faseg.models.faseg import FASeg, padded_batch
from paperkit.results.report import save_figure

QUERIES = 3
CONFIDENT = 0.5


@torch.no_grad()
def draw_network(network: FASeg, image: Tensor, folder: Path) -> list[Path]:
    """Attention and positions of the surest queries layer by layer, chosen windows, and consistency, as PNG files.

    Args:
        network: in eval mode, on the CPU.
        image: (3, H, W), RGB from 0 to 255, at the size that it is segmented in.
    """
    head, batch = network.sem_seg_head, padded_batch([image])
    pixels, trace = head.pixel_decoder(network.backbone(batch)), list[LayerTrace]()
    outputs = head.predictor(pixels.features, pixels.positions, pixels.mask_features, masks="none", trace=trace)
    likely, labels = outputs["pred_logits"][0].softmax(-1)[:, :-1].max(-1)
    sizes = [(int(each.shape[2]), int(each.shape[3])) for each in pixels.features]
    bottom, right = batch.shape[2] - image.shape[1], batch.shape[3] - image.shape[2]
    picture = F.pad(image / 255, (0, right, 0, bottom)).permute(1, 2, 0)
    names = network.class_names or [str(i) for i in range(network.num_classes)]
    rows = {f"query {q}: {names[labels[q]]}": q for q in likely.topk(min(QUERIES, len(likely))).indices.tolist()}
    columns = [f"layer {i}\n1/{batch.shape[2] // sizes[seen.level][0]}" for i, seen in enumerate(trace)]

    def attention() -> Figure:
        maps = {name: [as_map(seen, sizes)[0, q] for seen in trace] for name, q in rows.items()}
        return draw_maps(picture, maps, columns, "Where the surest queries look, layer by layer")

    def positions() -> Figure:
        maps = {
            name: [similarity(seen.query_pos[0, q][None], pixels.positions[seen.level][0])[0] for seen in trace]
            for name, q in rows.items()
        }
        return draw_maps(picture, maps, columns, "Cosine of positional queries and key positions", signed=True)

    def consistency() -> Figure:
        maps, sure = on_coarse_grid(trace, sizes), likely[None] > CONFIDENT
        low = [i for i, seen in enumerate(trace) if seen.cells is None]
        overlaps = [map_overlap(one, other, sure) for one, other in pairwise(maps)]
        pairs = [f"{one}, {other}" for one, other in pairwise(low)]
        return draw_consistency({"this network": overlaps}, pairs)

    makers: dict[str, Callable[[], Figure]] = {
        "attention": attention,
        "positions": positions,
        "consistency": consistency,
    }
    groups = [(trace[i - 3], seen) for i, seen in enumerate(trace) if seen.cells is not None and seen.cells.numel()]
    if groups:
        scores = [as_map(coarse, sizes)[0].sum(0) for coarse, _ in groups]
        cells = [seen.cells[0] for _, seen in groups if seen.cells is not None]
        makers["windows"] = lambda: draw_windows([picture] * len(groups), scores, cells)
    for name, make in makers.items():
        save_figure(make(), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in makers]
