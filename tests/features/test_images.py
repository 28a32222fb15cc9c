"""Decoding of every kind of file, and fitting by hand."""

import numpy as np
import pytest
from PIL import Image

from fgis.features.images import FILL, crop, pad, read_image, squash

RED, BLUE = (200, 10, 20), (20, 10, 200)


def test_decoding_makes_upright_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: upright is 90 degrees clockwise
    sideways = Image.new("RGB", (40, 20), BLUE)
    sideways.paste(RED, (0, 0, 20, 20))
    sideways.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == pytest.approx(RED, abs=4)
    assert upright.getpixel((10, 35)) == pytest.approx(BLUE, abs=4)


def test_decoding_of_other_modes(tmp_path):
    def pixel(name, image, **options):
        image.save(tmp_path / name, **options)
        read = read_image(tmp_path / name)
        assert (read.mode, read.size) == ("RGB", image.size)
        return read.getpixel((1, 0))

    assert pixel("grey.png", Image.new("L", (3, 2), 77)) == (77, 77, 77)
    sixteen = np.full((2, 3), 257 * 200, np.uint16)
    assert pixel("sixteen.png", Image.fromarray(sixteen)) == (200, 200, 200)
    assert pixel("sixteen.tif", Image.fromarray(sixteen)) == (200, 200, 200)
    assert pixel("palette.gif", Image.new("RGB", (3, 2), RED).quantize(4)) == pytest.approx(RED, abs=2)
    assert pixel("cmyk.jpg", Image.new("CMYK", (3, 2), (0, 255, 255, 0))) == pytest.approx((255, 0, 0), abs=4)
    assert pixel("clear.png", Image.new("RGBA", (3, 2), (0, 0, 0, 0))) == (255, 255, 255)
    half = pixel("half.png", Image.new("RGBA", (3, 2), (0, 0, 0, 51)))  # one fifth black on white
    assert half == pytest.approx((204, 204, 204), abs=1)
    frames = [Image.new("RGB", (3, 2), colour) for colour in (RED, BLUE)]
    assert pixel("moving.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True) == RED
    with pytest.raises(ValueError, match="floating-point"):
        pixel("float.tif", Image.new("F", (3, 2), 0.5))


def test_truncated_image_is_an_error(tmp_path):
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        read_image(tmp_path / "x.jpg")


def test_squash_pad_crop():
    image = Image.new("RGB", (80, 40), (250, 0, 0))  # twice as wide as high: red, with a blue band on either side
    image.paste((0, 0, 250), (0, 0, 16, 40))
    image.paste((0, 0, 250), (64, 0, 80, 40))
    squashed, padded, cropped = (np.asarray(f(image, (20, 20))) for f in (squash, pad, crop))
    assert squashed.shape == padded.shape == cropped.shape == (20, 20, 3)
    # squashed: bands of 16 * 20/80 = 4 columns
    assert squashed[10, [1, 10, 18]].tolist() == [[0, 0, 250], [250, 0, 0], [0, 0, 250]]
    # padded: 10 x 20 in the middle, mean colour above and below
    assert padded[[0, 4, 15, 19], 10].tolist() == [list(FILL)] * 4
    assert padded[[5, 14], 10].tolist() == [[250, 0, 0]] * 2
    assert padded[10, 1].tolist() == [0, 0, 250]
    # cropped: columns 20..60 of the photo, which are all red
    assert (cropped == [250, 0, 0]).all()
    assert np.asarray(pad(image, (50, 20))).shape == (50, 20, 3)
    assert pad(Image.new("RGB", (1000, 1)), (32, 32)).size == (32, 32)  # the short side would round to 0


def test_every_picture_can_be_cropped_whatever_its_sides():
    for height in range(1, 60):
        for width in (1, 7, 31, 57):
            assert crop(Image.new("RGB", (width, height)), (24, 30)).size == (30, 24)
