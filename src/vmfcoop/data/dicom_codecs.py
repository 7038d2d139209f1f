"""A decoder plugin for pydicom: JPEG Extended, JPEG Lossless and JPEG-LS through imagecodecs.

pydicom's own plugins for these are GDCM, which aborts the process on some damaged streams, and
pylibjpeg-libjpeg, whose licence is the GPL. imagecodecs (libjpeg-turbo, CharLS) raises an error instead.
The functions have the names and signatures that pydicom asks of a plugin.
"""

from __future__ import annotations

from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
)

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

PLUGIN = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    ("imagecodecs>=2024.6.1",),
)

_registering = Lock()


def is_available(uid: str) -> bool:
    """Whether imagecodecs is installed and the transfer syntax one of those it is used for."""
    return uid in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def register() -> None:
    """Make the plugin known to pydicom, where imagecodecs is installed."""
    with _registering:
        for syntax in DECODER_DEPENDENCIES:
            decoder = get_decoder(syntax)
            if is_available(syntax) and PLUGIN not in decoder.available_plugins:
                decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """One compressed frame to its samples, row by row."""
    import imagecodecs

    jpeg_ls = runner.transfer_syntax in JPEGLSTransferSyntaxes
    samples = imagecodecs.jpegls_decode(src) if jpeg_ls else imagecodecs.jpeg8_decode(src)
    by_plane = samples.ndim == 3 and samples.shape[1:] == (runner.rows, runner.columns)
    runner.set_option("planar_configuration", int(by_plane))
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    return bytes(samples.tobytes())
