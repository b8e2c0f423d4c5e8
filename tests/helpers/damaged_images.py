"""Small images of every kind that is read, still and animated, with EXIF blocks, and damage that reaches beyond checksums."""

import io
import zlib

import numpy as np
from PIL import Image, ImageDraw

from helpers.mutations import mutated

SIZE = (24, 16)  # width, height
_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "jpg": ("L", "RGB", "CMYK"), "webp": ("RGB", "RGBA"),
    "gif": ("P", "L"), "tif": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "avif": ("RGB", "RGBA"), "ppm": ("1", "L", "RGB", "I;16"),
}  # fmt: skip
_OPTIONS = {
    "progressive.jpg": dict(progressive=True), "restarts.jpg": dict(restart_marker_blocks=1),
    "lossless.webp": dict(lossless=True),
    "lzw.tif": dict(compression="tiff_lzw"), "deflate.tif": dict(compression="tiff_adobe_deflate"),
    "jpeg.tif": dict(compression="jpeg"), "packed.tif": dict(compression="packbits"),
}  # fmt: skip


def image_files() -> dict[str, bytes]:
    """One of each format and mode, some with a way of packing, and animations of three frames."""
    modes = [(mode, suffix) for suffix in _MODES for mode in _MODES[suffix]]
    files = {f"{mode.replace(';', '')}.{suffix}": _written(_picture(mode), suffix) for mode, suffix in modes}
    files["fax.tif"] = _written(_picture("1"), "tif", compression="group4")
    files |= {name: _written(_picture("RGB"), name.rpartition(".")[2], **options) for name, options in _OPTIONS.items()}
    for suffix in ("gif", "webp", "png", "avif", "tif"):
        modes = ("P",) if suffix == "gif" else ("RGB", "RGBA")
        files |= {f"frames-{mode}.{suffix}": _animation(suffix, mode) for mode in modes}
    files["default.png"] = _animation("png", "RGB", default_image=True)
    files["disposed.gif"] = _animation("gif", "P", disposal=2, transparency=3)
    return files


def mutated_image(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    """As `mutated`; in half of the PNG files the checksums are made right again, without which nothing behind them is read."""
    changed = mutated(data, rng)
    return _with_sums(changed) if name.endswith(".png") and rng.random() < 0.5 else changed


def _picture(mode: str, shift: int = 0) -> Image.Image:
    ramp = np.add.outer(np.arange(SIZE[1]), 9 * np.arange(SIZE[0]) + 40 * shift)
    rgba = np.stack([ramp, ramp * 2, ramp * 3, ramp * 5], -1).astype(np.uint8)
    if mode in ("I", "I;16", "F"):
        return Image.fromarray(ramp.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]) * 37)
    picture = Image.fromarray(rgba)
    if mode == "LAB":
        return Image.frombytes("LAB", SIZE, picture.convert("RGB").tobytes())
    return picture.convert(mode) if mode in ("RGBA", "LA") else picture.convert("RGB").convert(mode)


def _exif() -> Image.Exif:
    """Orientation, texts, rationals and a nested directory."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A], exif[0x0132] = 6, "maker", 72.0, "2024:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return exif


def _written(picture: Image.Image, suffix: str, **options) -> bytes:
    buffer = io.BytesIO()
    if suffix in ("jpg", "png", "webp") or suffix == "tif" and "compression" not in options or suffix == "avif" and not options:
        options["exif"] = _exif()
    picture.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


def _animation(suffix: str, mode: str, **options) -> bytes:
    frames = [_picture(mode, shift) for shift in range(3)]
    ImageDraw.Draw(frames[1]).rectangle((4, 4, 9, 9), 3 if mode == "P" else (9, 8, 7))
    return _written(frames[0], suffix, save_all=True, append_images=frames[1:], duration=[40, 300, 20], **options)


def _with_sums(data: bytes) -> bytes:
    """A PNG file whose chunks have right checksums, as far as chunks can be found."""
    changed, at = bytearray(data), 8
    while at + 12 <= len(changed):
        end = at + 8 + int.from_bytes(changed[at : at + 4], "big")
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = zlib.crc32(changed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(changed)
