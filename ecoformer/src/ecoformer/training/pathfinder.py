"""Pathfinder images of the Long Range Arena: two dashed paths among distractors; are the two dots on one path?

After drewlinsley/pathfinder, with its settings for 32 x 32 pixels. `relaxed` settings need no restarts by the hundred.

A distractor is tried once, where the source tries five times. With five, 3.0 of the 5 distractors find a place and the
mean grey is 26.1 (with one 1.5 and 22.5; 40 pictures); the reference samples show about one, by eye, and 20.1, their
band is 17 to 24. No other step explains it: places merged by their maximum, as in the source, in place of the sum give
29.3 with five tries; first segments that stand unchecked 26.2; seeds kept clear by the full pixels of a segment's mask
alone 24.8; all of these together, and the last mask of the second path only, 28.5 (24 to 30 in every combination).

Coordinates are (y, x), angles in radians from the x axis towards larger y.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from paperkit.errors import UserError

Array = np.ndarray
LEAST_FREE = 0.01
"""Share of the pixels that must be free for another distractor to begin."""
Point = tuple[int, int]


@dataclass(frozen=True)
class PathfinderOptions:
    """Settings of the generator; the defaults are the arena's "hard" one.

    Args:
        window: side in px. padding: frame that stays free. seed_distance: px between the beginnings of both paths.
        seed_frame: px from the border in which no first path begins (None: twice the seed distance).
        marker_radius: px. contour_length: segments of a path (6 easy, 9 intermediate, 14 hard).
        paddle_length, paddle_thickness, margin: of a segment, px. continuity: 1 bends as far as it may.
        distractor_length, distractors: segments and number of the other paths.
        antialias: pixels drawn for each px. snake_contrast, paddle_contrast: brightness.
    """

    window: int = 32
    padding: int = 1
    seed_distance: int = 7
    seed_frame: int | None = None
    marker_radius: float = 1.5
    contour_length: int = 14
    paddle_length: int = 2
    paddle_thickness: float = 0.5
    margin: int = 1
    continuity: float = 1.0
    distractor_length: int = 4
    distractors: int = 5
    antialias: int = 2
    snake_contrast: float = 2.0
    paddle_contrast: float = 0.75

    def __post_init__(self) -> None:
        frame = self.frame
        if self.window - 2 * frame < 2:
            raise UserError(f"a window of {self.window} px has no room inside a frame of {frame} px on each side")

    @property
    def frame(self) -> int:
        """Width of the frame in which the first path does not begin."""
        return 2 * self.seed_distance if self.seed_frame is None else self.seed_frame


def setting(difficulty: str) -> PathfinderOptions:
    """The arena's "easy", "intermediate" and "hard", and "relaxed": small, for tests.

    Raises:
        UserError: another one.
    """
    lengths = {"easy": 6, "intermediate": 9, "hard": 14}
    if difficulty == "relaxed":
        return PathfinderOptions(24, seed_frame=7, contour_length=6, distractor_length=2, distractors=4)
    if difficulty not in lengths:
        raise UserError(f"Pathfinder difficulty '{difficulty}' is none of {', '.join(lengths)}, relaxed")
    length = lengths[difficulty]
    return PathfinderOptions(contour_length=length, distractor_length=length // 3, distractors=20 // (length // 3))


def translate(point: Point, angle: float, length: float) -> Point:
    """A step, rounded up."""
    return math.ceil(point[0] + length * math.sin(angle)), math.ceil(point[1] + length * math.cos(angle))


def disk(radius: float) -> Array:
    """Pixels with x^2 + y^2 <= r^2, as a square of truth values."""
    reach = math.floor(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x**2 + y**2 <= radius**2


def dilated(image: Array, shape: Array) -> Array:
    """The largest value, times the shape's, under `shape` around each pixel; nothing comes in from outside."""
    reach_y, reach_x = shape.shape[0] // 2, shape.shape[1] // 2
    wide = np.pad(image, ((reach_y, reach_y), (reach_x, reach_x)))
    out = np.zeros_like(image)
    for y, x in zip(*np.nonzero(shape), strict=True):
        # a pixel spreads to the places that the shape, centred on it, covers
        y0, x0 = 2 * reach_y - y, 2 * reach_x - x
        np.maximum(out, shape[y, x] * wide[y0 : y0 + image.shape[0], x0 : x0 + image.shape[1]], out=out)
    return out


def _resized(image: Array, side: int) -> Array:
    """Scaled to 0..255 by its extremes and made smaller by Lanczos' filter: 0 to 1."""
    low, high = image.min(), image.max()
    scaled = (255 * (image - low) / max(high - low, 1e-9)).astype(np.uint8)
    return np.asarray(Image.fromarray(scaled).resize((side, side), Image.Resampling.LANCZOS)) / 255.0


@functools.lru_cache(maxsize=4096)
def _segment(angle: float, options: PathfinderOptions) -> tuple[Array, Array]:
    """A segment that begins in the middle of a square, and the place it takes up: values of 0 to 1."""
    reach = options.paddle_length + math.ceil(options.paddle_thickness) + options.margin
    side, scale = 2 * options.antialias * reach + 1, options.antialias
    centre = (side // 2, side // 2)
    end = translate(centre, angle, options.paddle_length * scale)
    canvas = Image.new("L", (side, side))
    width = max(1, round(options.paddle_thickness * scale))
    ImageDraw.Draw(canvas).line([centre[::-1], end[::-1]], fill=255, width=width)
    line = np.asarray(canvas).astype(np.float32)
    small = 2 * reach + 1
    return _resized(line, small), _resized(dilated(line, disk(options.margin * scale)), small)


class NoRoomError(Exception):
    """A draw failed; the picture begins anew."""


@dataclass
class _Path:
    """The growing end of a path: where it turns next, in which direction, and the place its last segment takes up."""

    pivot: Point
    angle: float
    last_mask: Array
    tail: Point
    head: Point


class _Drawing:
    """One picture while it is made: `image` the brightness, `mask` the places taken."""

    def __init__(self, options: PathfinderOptions, draw: np.random.Generator) -> None:
        self.options, self.draw = options, draw
        side, pad = options.window, options.padding
        self.image = np.zeros((side, side))
        self.mask = np.ones((side, side))
        self.mask[pad : side - pad, pad : side - pad] = 0

    def inside(self, point: Point) -> bool:
        return all(0 <= value < self.options.window for value in point)

    def pasted(self, small: Array, at: Point) -> Array:
        """A small square centred at a point of an empty picture, cut at the border."""
        side, reach = self.options.window, small.shape[0] // 2
        wide = np.zeros((side + 2 * reach, side + 2 * reach))
        wide[at[0] : at[0] + small.shape[0], at[1] : at[1] + small.shape[0]] = small
        return wide[reach : reach + side, reach : reach + side]

    def segment(self, at: Point, angle: float) -> tuple[Array, Array]:
        line, mask = _segment(round(angle, 6), self.options)
        return self.pasted(line, at), self.pasted(mask, at)

    def first(self, tail: Point, angle: float, contrast: float) -> _Path:
        """The first segment of a path."""
        o = self.options
        head = translate(tail, angle, o.paddle_length)
        pivot = translate(head, angle + math.pi, o.paddle_length + o.margin)
        if not (self.inside(tail) and self.inside(head) and self.inside(pivot)):
            raise NoRoomError
        line, mask = self.segment(tail, angle)
        if (self.mask + mask).max() >= 1.8:
            raise NoRoomError
        self.image = np.maximum(self.image, contrast * line)
        return _Path(pivot, angle, mask, tail, head)

    def degrees(self) -> float:
        return math.radians(int(self.draw.integers(-180, 180)))

    def free_place(self, angle: float, frame: int, least: float = 0.0) -> Point:
        """A pixel from which a segment keeps clear of what is taken and of a frame, if more than a share are free."""
        side = self.options.window
        taken = self.mask.copy()
        taken[:frame], taken[side - frame :], taken[:, :frame], taken[:, side - frame :] = 1, 1, 1, 1
        _, shape = _segment(round(angle + math.pi, 6), self.options)  # a pixel is taken if its segment would meet one
        free = np.argwhere(np.ceil(dilated(taken, shape) - 0.3) <= 0)
        if len(free) <= least * side * side:
            raise NoRoomError
        y, x = free[self.draw.integers(len(free))]
        return int(y), int(x)

    def extend(self, path: _Path, contrast: float, retries: int) -> None:
        """One more segment, turning by less than a right angle, where there is room."""
        o = self.options
        pivot = translate(path.pivot, path.angle, o.paddle_length + 2 * o.margin)
        radius = o.paddle_length + o.margin
        steps = max(8, math.ceil(2 * math.pi * radius))
        found: dict[Point, float] = {}
        for angle in np.linspace(0, 2 * math.pi, steps, endpoint=False):
            point = (int(pivot[0] + radius * math.sin(angle)), int(pivot[1] + radius * math.cos(angle)))
            if self.inside(point) and point != pivot:
                found.setdefault(point, math.atan2(point[0] - pivot[0], point[1] - pivot[1]))
        if not found:
            raise NoRoomError
        taken = dilated(self.mask, disk(o.margin))
        turns = np.array([abs((a - path.angle + math.pi) % (2 * math.pi) - math.pi) for a in found.values()])
        weights = np.cos(np.minimum(turns * o.continuity, math.pi / 2)) ** 2
        weights *= 1 - np.minimum(np.array([taken[point] for point in found]), 1)
        if weights.sum() < 1e-4:
            raise NoRoomError
        heads = list(found)
        for _ in range(retries + 1):
            chosen = int(np.searchsorted(weights.cumsum(), self.draw.random() * weights.sum(), side="right"))
            head = heads[min(chosen, len(heads) - 1)]
            angle = found[head]
            line, mask = self.segment(head, angle + math.pi)
            if (self.mask + mask).max() < 1.8:
                self.image = np.maximum(self.image, contrast * line)
                self.mask = self.mask + path.last_mask
                path.pivot, path.angle, path.last_mask, path.head = pivot, angle, mask, head
                return
        raise NoRoomError


def draw_image(
    options: PathfinderOptions, draw: np.random.Generator, most_restarts: int = 100_000
) -> tuple[Array, int]:
    """(image, label): (window, window) uint8 from 0 to 255, and 1 if both dots lie on one path.

    Raises:
        UserError: no picture came out of so many restarts.
    """
    for _ in range(most_restarts):
        try:
            return _draw_once(options, draw)
        except NoRoomError:
            continue
    raise UserError(f"no Pathfinder image in {most_restarts} attempts with {options}")


def _draw_once(o: PathfinderOptions, draw: np.random.Generator) -> tuple[Array, int]:
    drawing, contrast = _Drawing(o, draw), o.paddle_contrast * o.snake_contrast
    label = int(draw.random() < 0.5)
    angle = drawing.degrees()
    one = drawing.first(drawing.free_place(angle, o.frame), angle, contrast)
    away = drawing.degrees()
    tail = (
        round(one.tail[0] + o.seed_distance * math.sin(away)),
        round(one.tail[1] + o.seed_distance * math.cos(away)),
    )
    two = drawing.first(tail, drawing.degrees(), contrast)
    starts = (one.tail, two.tail)
    for _ in range(o.contour_length - 1):
        for path in (one, two):
            drawing.extend(path, contrast, retries=2)
    drawing.mask = np.maximum(drawing.mask, np.maximum(one.last_mask, two.last_mask))
    for _distractor in range(o.distractors):
        # One attempt for each: see the head of this file.
        kept = drawing.image, drawing.mask
        try:
            angle = drawing.degrees()
            path = drawing.first(drawing.free_place(angle, 1, LEAST_FREE), angle, o.snake_contrast)
            for _ in range(o.distractor_length - 1):
                drawing.extend(path, o.snake_contrast, retries=2)
            drawing.mask = drawing.mask + path.last_mask
        except NoRoomError:
            drawing.image, drawing.mask = kept
    which = int(draw.integers(2))
    ends = (one.head, two.head)
    marked = (starts[which], ends[which if label else 1 - which])
    reach = math.ceil(o.marker_radius)
    fine = np.pad(disk(o.marker_radius * o.antialias).astype(np.float32), 1)
    dot = _resized(fine, 2 * reach + 1)
    image = drawing.image
    for point in marked:
        image = np.maximum(image, drawing.pasted(dot, point))
    scaled = (image - image.min()) / (image.max() - image.min())
    return np.round(255 * scaled).astype(np.uint8), label


def pathfinder_images(count: int, seed: int, options: PathfinderOptions | None = None) -> tuple[Array, Array]:
    """(count, window, window) uint8 and (count,) labels; image i depends on the seed and i alone."""
    options = options or PathfinderOptions()
    made = [draw_image(options, np.random.default_rng([seed, i])) for i in range(count)]
    return np.stack([image for image, _ in made]), np.array([label for _, label in made], dtype=np.int64)
