"""Pictures as people have them: read as a viewer shows them, or refused in one line that names the file."""

import io
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from timm.data import auto_augment
from torch.utils.data import DataLoader, Dataset

from paperkit.data import images
from paperkit.data.pictures import MAX_PIXELS, load_picture, read_picture
from paperkit.errors import UserError

TURNS = {  # the stored pixels that a camera writes with this orientation for the upright scene
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    """Red at the upper left, green at the upper right, blue at the lower left, in blocks that JPEG keeps."""
    pixels = np.full((height, width, 3), 60, dtype=np.uint8)
    pixels[:8, :16], pixels[:8, 16:], pixels[-8:, :16] = (220, 20, 20), (20, 220, 20), (20, 20, 220)
    return pixels


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels_of(path: Path) -> np.ndarray:
    image = read_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def grey_of(path: Path) -> list[int]:
    pixels = pixels_of(path)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].ravel().tolist()


def refused(source: Any, name: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(source, name)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](scene())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    path = saved(stored, tmp_path / f"x.{kind}", exif=exif, **options)
    found = pixels_of(path)
    assert found.shape == (24, 32, 3)
    assert abs(found - scene()).max() <= (12 if kind == "jpg" else 0)
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")))


def test_a_note_of_orientation_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    whole = saved(Image.fromarray(scene()), tmp_path / "x.png")
    for exif in (
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
        b"nonsense",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0",
    ):
        path = saved(Image.fromarray(scene()), tmp_path / "y.png", exif=exif)
        assert np.array_equal(pixels_of(path), pixels_of(whole))


# --- kinds of pixels -------------------------------------------------------------------------------------------------

WIDE = np.array([[0, 128, 257], [32768, 65278, 65535]], dtype=np.uint16)
NARROW = [0, 0, 1, 128, 254, 255]


@pytest.mark.parametrize("kind", ["png", "tif", "jp2"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, kind: str) -> None:
    path = saved(Image.fromarray(WIDE), tmp_path / f"x.{kind}")
    assert grey_of(path) == NARROW


def test_sixteen_bit_grey_of_other_tools_is_scaled(tmp_path: Path) -> None:
    big = Image.frombytes("I;16B", (3, 2), WIDE.astype(">u2").tobytes())
    assert grey_of(saved(big, tmp_path / "big_endian.tif")) == NARROW
    wide = Image.fromarray(WIDE.astype(np.int32))
    assert grey_of(saved(wide, tmp_path / "whole_numbers.tif")) == NARROW
    assert grey_of(saved(Image.fromarray(np.int32([[0, 7, 255]])), tmp_path / "eight_in_32.tif")) == [0, 7, 255]
    (tmp_path / "x.pgm").write_bytes(b"P5 3 2 65535\n" + WIDE.astype(">u2").tobytes())
    assert grey_of(tmp_path / "x.pgm") == NARROW
    (tmp_path / "twelve.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([2048, 4095], ">u2").tobytes())
    assert grey_of(tmp_path / "twelve.pgm") == [128, 255]
    white = saved(Image.fromarray(WIDE), tmp_path / "white_is_zero.tif", tiffinfo={262: 0})
    assert grey_of(white) == [255 - value for value in NARROW]
    assert load_picture(tmp_path / "big_endian.tif").getpixel((2, 1)) == 65535


def test_pixels_that_nobody_can_place_are_refused_by_name(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.float32([[0.0, 0.5, 1.0]])), tmp_path / "depth.tif")
    assert refused(path).startswith(f"cannot read image {path}: its pixels are floats")
    for odd in ([[0, 70000]], [[-1, 3]]):
        path = saved(Image.fromarray(np.int32(odd)), tmp_path / "odd.tif")
        assert f"{path}: its pixels are numbers from {min(odd[0])} to {max(odd[0])}, not of 16 bits" in refused(path)


def test_one_bit_palette_and_alpha_are_as_timm_reads_them(tmp_path: Path) -> None:
    """The colours beneath an alpha channel stay: nothing is laid over black or white."""
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    for name in ("bits.png", "bits.tif", "bits.bmp"):
        assert grey_of(saved(bits, tmp_path / name)) == [0, 255, 255, 0]
    palette = Image.fromarray(scene()).quantize(4)
    wanted = np.asarray(palette.convert("RGB"))
    for name, options in (("a.png", {}), ("b.png", {"transparency": 0}), ("c.png", {"transparency": b"\0\x80\xff"})):
        assert np.array_equal(pixels_of(saved(palette, tmp_path / name, **options)), wanted)
    alpha = Image.fromarray(scene())
    alpha.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))))
    for name in ("rgba.png", "rgba.tif"):
        assert np.array_equal(pixels_of(saved(alpha, tmp_path / name)), scene())
    grey = saved(Image.merge("LA", (Image.new("L", (2, 1), 77), Image.new("L", (2, 1), 0))), tmp_path / "la.png")
    assert grey_of(grey) == [77, 77]


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_printers_colours_are_not_inverted(tmp_path: Path, kind: str) -> None:
    path = saved(Image.fromarray(scene()).convert("CMYK"), tmp_path / f"x.{kind}")
    assert abs(pixels_of(path) - scene()).mean() < 4


def test_the_first_picture_of_several_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(scene()), Image.new("RGB", (32, 24), (255, 255, 0))
    for name in ("x.gif", "x.webp", "x.png", "x.tif"):
        lossless = {"lossless": True} if name == "x.webp" else {}
        path = saved(first, tmp_path / name, save_all=True, append_images=[second], **lossless)
        assert abs(pixels_of(path) - scene()).max() <= 4
    path = saved(first, tmp_path / "x.mpo", format="MPO", save_all=True, append_images=[second], quality=95)
    assert abs(pixels_of(path) - scene()).mean() < 6


# --- where a picture comes from --------------------------------------------------------------------------------------


def test_paths_bytes_and_open_files_are_one(tmp_path: Path) -> None:
    path = saved(Image.fromarray(scene()), tmp_path / "x.png")
    assert np.array_equal(np.asarray(read_picture(str(path))), scene())
    assert np.array_equal(np.asarray(read_picture(path.read_bytes())), scene())
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(read_picture(file)), scene())
        assert not file.closed
    assert refused(b"x" * 100, "0.jpg of train.tar").startswith("cannot read image 0.jpg of train.tar: it is no image")
    assert refused(io.BytesIO(b"")) == "cannot read image in memory: it is empty (0 bytes); copy it again"


def test_a_label_map_keeps_its_numbers(tmp_path: Path) -> None:
    labels = Image.fromarray(np.array([[0, 3], [255, 1]], dtype=np.uint8))
    labels.putpalette([9, 9, 9] * 256)
    assert np.asarray(load_picture(saved(labels, tmp_path / "x.png"))).tolist() == [[0, 3], [255, 1]]


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_foreign_files_are_called_what_they_are(tmp_path: Path) -> None:
    foreign = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n": "a Git LFS pointer",
        b"../.git/annex/objects/ab/cd/x.jpg": "a git-annex pointer",
        b"": "it is empty (0 bytes)",
        b"<!DOCTYPE html><html>404</html>": "a web page",
        b'<?xml version="1.0"?>\n<svg width="3"/>': "SVG",
        b"\xef\xbb\xbf <svg/>": "SVG",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "EPS",
        b"%PDF-1.4": "EPS and PDF",
        b"8BPS\0\1": "Photoshop",
        b"\xff\x0a\0\0": "JPEG XL",
        b"\xff\xd8\xff": "it is broken near its beginning",
        b"hello\n": "it is no image",
        bytes(range(256)) * 9: "it is no image",
    }
    for content, what in foreign.items():
        path = tmp_path / "x.jpg"
        path.write_bytes(content)
        message = refused(path)
        assert message.startswith(f"cannot read image {path}: ")
        assert what in message


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm"])
def test_every_cut_of_a_file_is_one_line_or_a_picture(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"x.{kind}"
    lines = 0
    for length in {*range(0, 64, 3), len(content) // 3, len(content) // 2, len(content) - 200}:
        path.write_bytes(content[:length])
        assert refused(path).startswith(f"cannot read image {path}: ")
        lines += 1
    assert lines > 20
    for place in range(0, min(len(content), 400), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with suppress(UserError):  # nothing else comes out
            read_picture(path)


def test_missing_files_folders_and_links_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.jpg") == f"no image at {tmp_path / 'none.jpg'}"
    assert refused(tmp_path) == f"cannot read image {tmp_path}: Is a directory"
    link = tmp_path / "link.jpg"
    link.symlink_to("away.jpg")
    assert refused(link) == f"no image at {link}, a link to away.jpg, which does not exist"


def large_png(width: int, height: int) -> bytes:
    """A grey PNG of `width` x `height` pixels in a few hundred kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("limit", [89_478_485, None])
def test_a_picture_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "wall.png"
    path.write_bytes(large_png(15_000, 13_000))  # 195 megapixels
    start = time.process_time()
    message = refused(path)
    assert time.process_time() - start < 1
    assert message.startswith(f"cannot read image {path}: 1")
    assert message.endswith(f"are more than {MAX_PIXELS} in all; make it smaller")
    path.write_bytes(large_png(60_000, 1_600))  # Pillow warns of this one; the panorama of a telephone may be as large
    assert read_picture(path).size == (60_000, 1_600)


def test_importing_leaves_pillow_and_timm_as_they_are() -> None:
    assert images.auto_augment is auto_augment  # imported, and nothing of it replaced
    assert {function.__module__ for function in auto_augment.NAME_TO_OP.values()} == {auto_augment.__name__}
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == ((1024**3 // 4 // 3), False)


class Pictures(Dataset[Any]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return np.asarray(read_picture(self.path))


@pytest.mark.parametrize("name", ["x.jpg", "UserError: x.jpg", "a\nb.jpg"])
def test_a_line_is_the_same_out_of_a_worker_process(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    lines = []
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            list(DataLoader(Pictures(path), num_workers=workers))
        lines.append(str(caught.value))
    assert (
        lines[0]
        == lines[1]
        == f"cannot read image {str(path).replace(chr(10), ' ')}: it is empty (0 bytes); copy it again"
    )
