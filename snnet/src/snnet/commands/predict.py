"""Classify images with one configuration, under the transform that the network was made for."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    parser.add_argument("images", nargs="+", type=str, help="image files")
    network_options.add_arguments(parser)
    parser.add_argument("--config_id", "--config-id", type=int | None, default=None, help="default: the largest anchor")
    parser.add_argument("--top", type=int, default=5, help="classes to print")


def run(arguments: Any) -> int:
    import torch

    from paperkit.data.pictures import read_picture
    from snnet.deployment.prediction import class_names, image_transform
    from snnet.deployment.source import open_source
    from snnet.method.stitching import mean_logits

    source = open_source(arguments)
    network, transform = source.network, image_transform(source)
    if arguments.config_id is not None:
        network.set_stitch(arguments.config_id)
    names = class_names(source)
    with torch.inference_mode():
        for path in arguments.images:
            logits = mean_logits(network(transform(read_picture(path))[None]))
            scores, classes = logits.softmax(-1)[0].topk(min(arguments.top, logits.shape[-1]))
            found = [f"{names[c]} {100 * s:.1f} %" for s, c in zip(scores.tolist(), classes.tolist(), strict=True)]
            print(f"{path}: {', '.join(found)}")
    return 0
