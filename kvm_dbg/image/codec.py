"""Decompress one page, with its output bounded.

Each function that `codec_for` returns takes the compressed bytes of a page and gives exactly `size` bytes, or raises
CodecError. Codecs are loaded when the first page needs them: zlib is of the standard library, LZO1X is `lzallright`,
snappy (raw, without framing) `cramjam`, zstd `zstandard` with one context for all pages.
"""

from __future__ import annotations

from collections.abc import Callable

from kvm_dbg.errors import UnsupportedError

Codec = Callable[[bytes | memoryview], bytes]
NAMES = ("zlib", "lzo", "snappy", "zstd")


class CodecError(Exception):
    """A page does not decompress; turned into a FormatError by the reader, who knows where it lies."""


def codec_for(name: str, size: int) -> Codec:
    """Return the decompressor `name` for pages of `size` bytes.

    Raises:
        UnsupportedError: the package that it needs is not installed.
    """
    try:
        return {"zlib": _zlib, "lzo": _lzo, "snappy": _snappy, "zstd": _zstd}[name](size)
    except ImportError as error:
        raise UnsupportedError(f"{name} compression", f"install the package {error.name}") from error


def _zlib(size: int) -> Codec:
    import zlib

    make = zlib.decompressobj
    limit = size + 1  # one more, so that the stream's end and checksum are reached

    def decompress(packed: bytes | memoryview) -> bytes:
        try:
            page = make().decompress(packed, limit)
        except zlib.error as error:
            raise CodecError(f"zlib: {error}") from error
        if len(page) != size:
            raise CodecError(f"zlib: gives {len(page)} bytes or more, not {size}")
        return page

    return decompress


def _lzo(size: int) -> Codec:
    from lzallright import LZOCompressor, LZOError

    unpack = LZOCompressor.decompress

    def decompress(packed: bytes | memoryview) -> bytes:
        try:
            page = unpack(packed, size)
        except LZOError as error:
            raise CodecError(f"lzo: {error}") from error
        if len(page) != size:
            raise CodecError(f"lzo: gives {len(page)} bytes, not {size}")
        return page

    return decompress


def _snappy(size: int) -> Codec:
    from cramjam import DecompressionError, snappy

    unpack = snappy.decompress_raw
    # the length in front, 7 bits a byte, lowest first: cramjam would allocate whatever it says
    preamble = bytearray()
    rest = size
    while rest > 0x7F:
        preamble.append(rest & 0x7F | 0x80)
        rest >>= 7
    preamble.append(rest)
    expected = bytes(preamble)
    length = len(expected)

    def decompress(packed: bytes | memoryview) -> bytes:
        if packed[:length] != expected:
            raise CodecError(f"snappy: the length in front is not that of a page of {size} bytes")
        try:
            page = bytes(unpack(packed))
        except DecompressionError as error:
            raise CodecError(str(error)) from error
        if len(page) != size:
            raise CodecError(f"snappy: gives {len(page)} bytes, not {size}")
        return page

    return decompress


def _zstd(size: int) -> Codec:
    import zstandard

    unpack = zstandard.ZstdDecompressor().decompress
    content_size = zstandard.frame_content_size

    def decompress(packed: bytes | memoryview) -> bytes:
        try:
            # the frame may say any size, and the binding would allocate it; -1: it does not say
            if content_size(packed) not in (size, -1):
                raise CodecError(f"zstd: the frame does not hold a page of {size} bytes")
            page = unpack(packed, max_output_size=size)
        except zstandard.ZstdError as error:
            raise CodecError(f"zstd: {error}") from error
        if len(page) != size:
            raise CodecError(f"zstd: gives {len(page)} bytes, not {size}")
        return page

    return decompress
