"""Picture files as the RGB pixels that a viewer shows, or one line that names the file.

Pillow's `convert("RGB")` alone, as in the loaders of timm and torchvision, leaves a photograph on its side and turns
16-bit grey into white; both are mended here. Everything else is as those loaders read it, so that an ImageNet file
gives the same pixels here and there: an alpha channel or a transparent colour is dropped (the colours beneath it stay;
nothing is laid over white or black), an embedded colour profile is not applied, and of an animation the first frame is
taken.
"""

import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from paperkit.errors import UserError

Picture = str | Path | bytes | BinaryIO

#: Larger pictures are refused before any pixel is decoded: Pillow's own limit for one that may be made to fill memory.
MAX_PIXELS = 178_956_970

#: What is read. Pillow knows more, but runs Ghostscript on one of them (EPS), whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")

_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # numbers of EXIF and TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a file that is no picture may be: its first bytes, in lower case without white space, and what to do about it.
_FOREIGN = {
    rb"version https://git-lfs": "it is a Git LFS pointer, not the file itself; fetch it with: git lfs pull",
    rb".{0,300}/annex/objects/": "it is a git-annex pointer, not the file itself; fetch it with: git annex get",
    rb"<!doctype html|<html": "it is a web page, no image; copy it again",
    rb"<svg|<(\?xml|!).*<svg": "SVG is a drawing without pixels; save it as PNG",
    rb".{4}ftyp(hei|hev|mif1|msf1)": "HEIC is not read; save it as JPEG or PNG",
    rb"%!ps|\xc5\xd0\xd3\xc6|%pdf": "EPS and PDF are programs for a printer and are not run; save it as PNG",
    rb"8bps": "Photoshop's format is not read; save it as PNG",
    rb"\xff\x0a|\0\0\0\x0cjxl ": "JPEG XL is not read; save it as JPEG or PNG",
    rb"\xff\xd8|\x89png|gif8|riff|ii\*\0|mm\0\*": "it is broken near its beginning; copy it again",
}


def read_picture(source: Picture, name: str | None = None) -> Image.Image:
    """The picture in `source` as an RGB image, upright.

    Args:
        source: a path, the file's bytes, or an open binary file (which stays open).
        name: what an error calls the picture, as in `0.jpg of train.tar`; a path has its own.

    Raises:
        UserError: one line with the name, for whatever is missing, broken, too large or no picture that is read.
    """
    image, depth = _decoded(source, name)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey(image, depth, named(source, name))
    elif image.mode in ("RGBa", "La"):  # colours times their alpha
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    elif image.mode == "P":  # straight to RGB, Pillow warns of a transparent colour; the colours are the same
        image = image.convert("RGBA")
    return image.convert("RGB")


def load_picture(source: Picture, name: str | None = None) -> Image.Image:
    """As `read_picture`, upright too, but with the pixels as they are in the file: a label map keeps its numbers."""
    return _decoded(source, name)[0]


class _Depth(NamedTuple):
    """What a TIFF says of its numbers beside the pixels."""

    bits: int = 16
    white_is_zero: bool = False


def _decoded(source: Picture, name: str | None) -> tuple[Image.Image, _Depth]:
    called = named(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size below the limit, and of notes beside the pixels
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(_too_large(called, f"{image.width} x {image.height} pixels"))
                image.load()
                tags = getattr(image, "tag_v2", {})
                depth = _Depth(tags.get(_BITS, (16,))[0], tags.get(_PHOTOMETRIC) == 0)
                return _upright(image), depth
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no image at {called}{_link(source)}") from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+ pixels", str(error))
        raise UserError(_too_large(called, pixels[0] if pixels else "its pixels")) from None
    except UnidentifiedImageError:
        raise UserError(f"cannot read image {called}: {_what_it_is(source)}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"cannot read image {called}: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"cannot read image {called}: there is not enough memory for it") from None
    except Exception as error:  # a decoder may stumble over a broken file in any way
        why = str(error) if isinstance(error, (OSError, SyntaxError, ValueError)) else ""
        raise UserError(f"cannot read image {called}: {why or 'it ends early or is broken'}; copy it again") from None


def named(source: Picture, name: str | None = None) -> str:
    """What an error calls a picture: `name`, or the path, or the open file's own name."""
    if name is not None:
        return str(name)
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "in memory"))


def _too_large(name: str, size: str) -> str:
    return f"cannot read image {name}: {size} are more than {MAX_PIXELS} in all; make it smaller"


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the camera noted (EXIF orientation 1 to 8); a note that cannot be read is none."""
    try:
        how = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is a file format of its own, broken in its own ways; the pixels are good
        how = None
    return image if how is None else image.transpose(how)


def _grey(image: Image.Image, depth: _Depth, name: str) -> Image.Image:
    """8-bit grey from whole numbers of up to 16 bits: their whole range becomes 0 to 255.

    Raises:
        UserError: if nobody can know which number is white.
    """
    if image.mode == "F":
        raise UserError(
            f"cannot read image {name}: its pixels are floats, of which nobody knows which is white; save it with 8 or "
            "16 bits"
        )
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 0xFFFF:
        raise UserError(
            f"cannot read image {name}: its pixels are numbers from {low} to {high}, not of 16 bits (0 to 65535); save "
            "it with 8 or 16 bits"
        )
    if depth.bits == 32 and high <= 0xFF:  # numbers of 8 bits in a wider file
        return Image.fromarray(pixels.astype(np.uint8))
    white = 0xFFF if depth.bits == 12 else 0xFFFF
    shades = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray((shades[::-1] if depth.white_is_zero else shades)[pixels])


def _link(source: Picture) -> str:
    if isinstance(source, (str, Path)) and Path(source).is_symlink():
        return f", a link to {Path(source).readlink()}, which does not exist"
    return ""


def _what_it_is(source: Picture) -> str:
    """Why a file is none of `FORMATS`, from its first bytes."""
    start = _start(source).lower()
    if not start:
        return "it is empty (0 bytes); copy it again"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, why in _FOREIGN.items():
        if re.match(pattern, start, re.DOTALL) or re.match(pattern, text, re.DOTALL):
            return why
    return f"it is no image of a kind that is read ({', '.join(FORMATS)}); copy it again"


def _start(source: Picture) -> bytes:
    if isinstance(source, bytes):
        return source[:4096]
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            return file.read(4096)
    source.seek(0)
    return source.read(4096)
