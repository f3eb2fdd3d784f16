"""Annotations held against the videos themselves: their durations, frame rates and numbers of frames."""

from dataclasses import replace

from paperkit.errors import UserError
from stpt.training.annotations import Annotations, Fault, bare
from stpt.training.frames import Source


def measured(annotations: Annotations, source: Source) -> tuple[Annotations, list[Fault]]:
    """The annotations with what `source` knows of each video, which counts more than what they say themselves.

    Returns:
        Them, and a fault (kind unreadable) for each video that is there and cannot be read.
    """
    there, videos, faults = {bare(name) for name in source.names()}, {}, []
    for name, video in annotations.videos.items():
        videos[name] = video
        if bare(name) in there:
            try:
                info = source.info(name)
            except UserError as error:
                faults.append(Fault("unreadable", name, str(error)))
            else:
                videos[name] = replace(video, duration=info.duration, fps=info.fps, frames=info.frames)
    return replace(annotations, videos=videos), faults
