"""Images as they come in requests to a served model: arrays of numbers, or files as base64 text; no paths."""

# B batch, H W pixels

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
from PIL import Image

from dinomaly_hd.data.folder import check_form
from dinomaly_hd.data.images import FORMAT_NAMES, SCALES, decode_image
from dinomaly_hd.errors import ImageError

IMAGE_COLUMN = "image"
PNG_START = b"\x89PNG"
_NO_NUMBERS = {"U": "text", "O": "null, an object, or a number beyond 64 bits"}
Images = npt.NDArray[np.float32]


def read_input(model_input: Any, *, shape: tuple[int, int], dtype: str, grey: bool = False) -> Images:
    """Return images (B, H, W) from whatever MLflow hands on: array, nested list, table, mapping of columns.

    ``shape`` (H, W), ``dtype`` ("float32", "uint8", "uint16") and ``grey`` are those of the model's training;
    what is not finite images of that shape, number type and range is an ImageError.
    """
    if isinstance(model_input, list) and model_input and all(isinstance(row, dict) for row in model_input):
        model_input = pd.DataFrame(model_input)
    if not isinstance(model_input, Mapping | pd.DataFrame):
        return _array(model_input, shape=shape, dtype=dtype)
    columns = list(model_input)
    if columns != [IMAGE_COLUMN]:
        raise ImageError(
            f"columns {', '.join(map(str, columns)) or 'none'}: expected one column {IMAGE_COLUMN!r}, which "
            "holds TIFF or PNG files as base64 text"
        )
    encoded = np.atleast_1d(np.asarray(model_input[IMAGE_COLUMN], dtype=object))
    if not len(encoded):
        raise ImageError(f"column {IMAGE_COLUMN!r}: no images, expected one or more")
    return np.stack([_decode(text, f"image {i}", shape, dtype, grey) for i, text in enumerate(encoded)])


def _array(values: Any, *, shape: tuple[int, int], dtype: str) -> Images:
    expected = f"expected (images, {shape[0]}, {shape[1]})"
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise ImageError(f"input: rows or images of different lengths, {expected}") from error
    if given.size and given.dtype.kind not in "uif":
        found = _NO_NUMBERS.get(given.dtype.kind, given.dtype.name)
        raise ImageError(f"input: holds {found}, expected numbers only")
    if given.ndim != 3 or given.shape[1:] != shape or not len(given):
        raise ImageError(f"input: shape {given.shape}, {expected}")
    with np.errstate(over="ignore"):
        images = np.ascontiguousarray(given, dtype=np.float32)
    finite_B = np.isfinite(images).all(axis=(1, 2))
    if not finite_B.all():
        raise ImageError(f"input: image {int(np.argmin(finite_B))} holds NaN or infinite values")
    if (
        dtype in SCALES
        and not (low := np.iinfo(dtype).min / SCALES[dtype]) <= images.min() <= images.max() <= 1
    ):
        found = f"values from {images.min():g} to {images.max():g}, expected {low:.0f} to 1"
        why = f"the model was trained on {FORMAT_NAMES[dtype]}; divide by {SCALES[dtype]:g}"
        raise ImageError(f"input: {found}: {why}")
    return images


def _decode(encoded: Any, name: str, shape: tuple[int, int], dtype: str, grey: bool) -> Images:
    wanted = "encode the bytes of a TIFF or PNG file"
    if not isinstance(encoded, str | bytes):
        raise ImageError(f"{name}: not base64 text ({type(encoded).__name__}); {wanted}")
    try:
        data = encoded if isinstance(encoded, bytes) else base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ImageError(f"{name}: not base64 ({error}); {wanted}") from error
    name += ".png" if data.startswith(PNG_START) else ".tiff"
    decoded = decode_image(data, name=name, grey=grey)
    check_form(decoded.form, name=name, shape=shape, dtype=dtype)
    return decoded.image


def encode_files(files: Sequence[bytes]) -> dict[str, list[str]]:
    """Return image files as a model takes them in a request, a mapping of columns."""
    return {IMAGE_COLUMN: [base64.b64encode(file).decode() for file in files]}


def input_example(*, shape: tuple[int, int], dtype: str) -> dict[str, list[str]]:
    """Return a table with one even image in the form that the model takes, as columns."""
    stream = BytesIO()
    if dtype in ("uint8", "uint16"):
        Image.fromarray(np.full(shape, 64, dtype)).save(stream, format="PNG")
    else:
        tifffile.imwrite(stream, np.full(shape, 0.25 * SCALES.get(dtype, 1), dtype))
    return encode_files([stream.getvalue()])
