"""Pictures that people search with: bounded, checked before they are decoded, and kept in memory only."""

import hashlib
import io
import warnings
from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

from PIL import Image

from fgis.errors import UserError
from fgis.features.images import to_rgb
from fgis.gallery.pictures import Box
from fgis.report.fonts import visible

MOST_BYTES = 50_000_000  # of one picture's file
MOST_PIXELS = 89_000_000  # of one picture, checked in its header: 270 MB decoded
KEPT_BYTES = 256_000_000  # of files together; the one that was used longest ago leaves first
NAME_LENGTH = 200


class Upload(NamedTuple):
    """One picture as it came."""

    name: str  # of the file, for people
    content: bytes
    width: int  # pixels, upright
    height: int


class Uploads:
    """The pictures of a running server, by the SHA-256 of their bytes; nothing is written to disk."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._held: OrderedDict[str, Upload] = OrderedDict()
        self._lock = Lock()  # of ``_held`` and ``_last``
        self._decoding = Lock()  # one picture at a time, however many come together
        self._last: tuple[str, Image.Image] | None = None  # decoded: it is searched with next

    def add(self, content: bytes, name: str) -> str:
        """Keeps a picture; returns its key.

        Raises:
          UserError: it is too large, or no picture.
        """
        name = visible(name.replace("\\", "/").rpartition("/")[2])[:NAME_LENGTH] or "picture"
        key = hashlib.sha256(content).hexdigest()
        with self._lock:
            if key in self._held:  # the same bytes again, maybe under another name
                self._held[key] = self._held.pop(key)._replace(name=name)
                return key
        with self._decoding:
            image = decode_upload(content, name)
        with self._lock:
            self._last = key, image
            self._held[key] = Upload(name, content, *image.size)
            while sum(len(one.content) for one in self._held.values()) > KEPT_BYTES:
                self._held.popitem(last=False)
        return key

    def find(self, key: str) -> Upload:
        """The picture of a key.

        Raises:
          UserError: it is not, or no longer, held.
        """
        with self._lock:
            if key not in self._held:
                raise UserError("this picture is no longer held: the server keeps the last ones only; choose it again")
            self._held.move_to_end(key)
            return self._held[key]

    def read(self, key: str) -> Image.Image:
        """The whole upright picture of a key, not to be changed; ``UserError`` as ``find``."""
        upload = self.find(key)
        with self._lock:
            if self._last and self._last[0] == key:
                return self._last[1]
        with self._decoding:
            image = decode_upload(upload.content, upload.name)
        with self._lock:
            self._last = key, image
        return image


def decode_upload(content: bytes, name: str) -> Image.Image:
    """The first frame, upright RGB; sizes are checked before anything is decoded.

    Raises:
      UserError: the file is empty or too large, has too many pixels, or cannot be decoded.
    """
    if not content:
        raise UserError(f"{name}: the file is empty; choose a picture")
    if len(content) > MOST_BYTES:
        raise UserError(f"{name}: more than {MOST_BYTES // 1_000_000} MB; choose a smaller picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is checked in the next lines
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise _too_many_pixels(name)
                return to_rgb(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name) from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: this file is not a picture that can be read; choose a JPEG, PNG or WebP") from error
    except Exception as error:  # decoders raise whatever the damage leads them to
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{name}: this picture is damaged and cannot be decoded ({reason}); choose another") from error


def _too_many_pixels(name: str) -> UserError:
    return UserError(f"{name}: more than {MOST_PIXELS // 1_000_000} million pixels; choose a smaller picture")


def crop_picture(image: Image.Image, box: Box) -> Image.Image:
    """The part of an upright picture; ``UserError`` where the box does not lie within it."""
    x, y, width, height = box
    if x + width > image.width or y + height > image.height:
        raise UserError(
            f"crop: the box {x},{y},{width},{height} is not within the picture, which is {image.width} x "
            f"{image.height} pixels upright; write x,y,w,h inside it"
        )
    return image.crop((x, y, x + width, y + height))
