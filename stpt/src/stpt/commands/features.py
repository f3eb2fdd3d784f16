"""Features of video files from the backbone: NAME.npy or NAME.safetensors (T', C) in float32, one row a few frames.

As ActionFormer, TriDet and OpenTAD read them. The row's frames, the rate and the duration are printed, and stand in
features.json beside the files and in the metadata of a .safetensors file (tensor `features`).
"""

from typing import Any

from stpt.commands.detect import add_search_arguments


def add_arguments(parser: Any) -> None:
    parser.add_argument("videos", nargs="+", type=str, help="video files")
    parser.add_argument("--ckpt", type=str, required=True, help="run folder or weights, as for detect")
    parser.add_argument("--stage", type=int, default=4, help="whose map: 4, a row every 8 frames, or 3, every 4")
    parser.add_argument("--to", choices=["npy", "safetensors"], default="npy", help="form of the files")
    add_search_arguments(parser)
    parser.add_argument("--output", type=str, default="runs/stpt/features", help="folder to write")


def run(arguments: Any) -> int:
    import io
    import json
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from paperkit.command.engines import device
    from paperkit.files.atomic import write_atomic
    from paperkit.files.weights import save_weights
    from stpt.deployment.features import video_features
    from stpt.deployment.searching import SearchedVideo, search_of
    from stpt.deployment.several_videos import Advance, for_each_video
    from stpt.models.conversion import load_network

    network = load_network(arguments.ckpt, device(arguments.device), arguments.trust_pickle)
    search, folder = search_of(arguments), Path(arguments.output)
    known: dict[str, dict[str, Any]] = {}

    def extract(name: str, path: Path, progress: Callable[[int], Advance]) -> None:
        video = SearchedVideo(network, path, search)
        rows, frames = video_features(video, arguments.stage, progress(len(video.offsets)))
        info, target = video.video.info, folder / f"{name}.{arguments.to}"
        about = {"fps": info.sample_fps, "feat_stride": frames, "duration": info.duration, "stage": arguments.stage}
        if arguments.to == "npy":
            buffer = io.BytesIO()
            np.save(buffer, rows.numpy())
            write_atomic(target, buffer.getvalue())
        else:
            save_weights(target, {"features": rows}, {key: str(value) for key, value in about.items()})
        known[name] = {**about, "file": target.name, "shape": list(rows.shape)}
        write_atomic(folder / "features.json", json.dumps(known, indent=1) + "\n")
        print(f"{target}: {rows.shape[0]} x {rows.shape[1]}, a row for {frames} frames at {info.sample_fps:g} a second")

    for_each_video(arguments.videos, extract)
    return 0
