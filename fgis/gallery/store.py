"""What a gallery keeps on disk: one SQLite file of images and of the contents that they share."""

from typing import NamedTuple


class ImageRecord(NamedTuple):
    """One image file of a gallery."""

    image_id: str  # posix path below the folder that was indexed
    label: str  # the first sub-folder's name; "" for a file at the top
    width: int  # pixels of the upright picture
    height: int
    bytes: int  # size of the file
    modified_ns: int  # its time of modification
    sha256: str  # of the file's bytes
    taken: str  # EXIF time of exposure, such as 2024-05-17 10:31:00; "" where the file does not say
