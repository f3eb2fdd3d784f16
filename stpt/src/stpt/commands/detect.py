"""Find the actions in video files: detections.json in ActivityNet's form, and a timeline NAME.png of each video.

--ckpt    a run folder of `stpt train --engine detection`, a checkpoint in one, a folder of save_pretrained, a converted
          .safetensors file, or a .ckpt file of AFSD
--share   computes the first stages once for frames that two windows share: faster on long videos, and not quite the
          same; what it changes in the middle window is printed

A video that cannot be read is named at the end; the others are searched all the same.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("videos", nargs="+", type=str, help="video files")
    parser.add_argument("--ckpt", type=str, required=True, help="run folder or weights")
    parser.add_argument("--annotations", type=str | None, default=None, help="truth to draw beside what was found")
    parser.add_argument("--above", type=float | None, default=None, help="least score of a candidate (the data set's)")
    parser.add_argument("--rule", choices=["corrected", "afsd", "hard"], default="corrected", help="of NMS")
    parser.add_argument("--shown", type=float, default=0.2, help="least score of a detection that is drawn")
    parser.add_argument("--top", type=int, default=5, help="detections to print of each video")
    add_search_arguments(parser)
    parser.add_argument("--share", action="store_true", help="compute frames that windows share once")
    parser.add_argument("--output", type=str, default="runs/stpt/detect", help="folder to write")


def add_search_arguments(parser: Any) -> None:
    """What every verb that reads videos through a network takes."""
    parser.add_argument("--stride", type=int, default=0, help="frames from a window to the next (0: half a window)")
    parser.add_argument("--batch", type=int, default=1, help="windows at a time")
    parser.add_argument("--precision", choices=["float32", "medium", "bfloat16"], default="float32", help="of products")
    parser.add_argument("--rate", type=float | None, default=None, help="frames a second of files without time stamps")
    parser.add_argument("--reader", choices=["pyav", "decord"], default="pyav", help="of video files")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from collections.abc import Callable
    from dataclasses import replace
    from pathlib import Path

    from paperkit.command.engines import device, refuse_below_one
    from paperkit.errors import UserError
    from stpt.deployment.detecting import detect, usual, write_results
    from stpt.deployment.searching import SearchedVideo, search_of
    from stpt.deployment.several_videos import Advance, for_each_video
    from stpt.figures.timeline import Bar, draw_timeline
    from stpt.models.conversion import load_network
    from stpt.training.annotations import read_annotations

    refuse_below_one(arguments, ["top"])
    known = read_annotations(arguments.annotations).videos if arguments.annotations else {}
    folder = Path(arguments.output)
    network = load_network(arguments.ckpt, device(arguments.device), arguments.trust_pickle)
    how = replace(usual(network), rule=arguments.rule)
    if arguments.above is not None:
        if arguments.above <= 0:
            raise UserError(f"above {arguments.above}: give a score above 0")
        how = replace(how, above=arguments.above, min_score=min(how.min_score, arguments.above))
    search = search_of(arguments)
    found: dict[str, list[Bar]] = {}
    about: dict[str, Any] = {"network": arguments.ckpt, "videos": {}}

    def search_one(name: str, path: Path, progress: Callable[[int], Advance]) -> None:
        video = SearchedVideo(network, path, search)
        bars, drift = detect(video, how, progress(len(video.offsets)))
        found[name], info = bars, video.video.info
        about["videos"][name] = {"duration": info.duration, "fps": info.fps, "sample_fps": info.sample_fps}
        write_results(folder / "detections.json", found, about)  # after each: a later one may fail
        truth = [Bar(a.start, a.end, a.label) for a in known[name].actions] if name in known else []
        title = f"{name}: actions found, scores from {arguments.shown:g}"
        picture = folder / f"{name}.png"
        draw_timeline(picture, truth, bars, title=title, length=info.duration, least=arguments.shown)
        print(f"{path}: {info.duration:.1f} s, {len(video.offsets)} windows, {len(bars)} detections -> {picture}")
        for bar in bars[: arguments.top]:
            print(f"  {bar.start:8.2f} to {bar.end:8.2f} s  {bar.score:.3f}  {bar.label}")
        if drift is not None:
            print(f"  the middle window by sharing: {drift}")

    for_each_video(arguments.videos, search_one)
    print(folder / "detections.json")
    return 0
