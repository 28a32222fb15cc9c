"""Listings by hand on small trees, decoding of every kind of file, and the errors of each collection."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features.collection import COLLECTIONS, fingerprint, load_collection, read_image

RED, BLUE = (200, 10, 20), (20, 10, 200)


def save(path, colour=RED, size=(4, 3), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def test_folder(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/er.PNG", "c c/x.png"):
        save(tmp_path / name)
    save(tmp_path / ".hidden" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = load_collection("folder", str(tmp_path))
    assert found.image_ids.tolist() == ["a/deep/er.PNG", "b/1.png", "b/2.png", "c c/x.png"]
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert found.labels.dtype == np.int64
    assert found.coarse is None


def test_folder_refuses_what_it_would_leave_out(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "stray.png")
    with pytest.raises(UserError, match=r"'stray.png' first of 1"):
        load_collection("folder", str(tmp_path))


@pytest.mark.parametrize("under", ["", "full"])
def test_ukbench(tmp_path, under):
    for number, suffix in ((10, "jpg"), (3, "JPG"), (9, "jpeg"), (4, "jpg")):
        save(tmp_path / under / f"ukbench{number:05d}.{suffix}", format="JPEG", colour=(number, 0, 0))
    (tmp_path / under / "readme.txt").write_text("")
    found = load_collection("ukbench", str(tmp_path))
    assert [i.split("ukbench")[1] for i in found.image_ids] == ["00003.JPG", "00004.jpg", "00009.jpeg", "00010.jpg"]
    assert found.labels.tolist() == [0, 1, 2, 2]
    assert found.coarse is None
    assert [found.read(row).getpixel((0, 0))[0] for row in range(4)] == pytest.approx([3, 4, 9, 10], abs=2)


def test_grocerystore(tmp_path):
    (tmp_path / "train.txt").write_text("train/a, b.jpg, 7, 3\ntrain/c.jpg, 0, 0\n\n")
    (tmp_path / "val.txt").write_text("")
    (tmp_path / "test.txt").write_text("test/d.jpg,80,42\n")
    found = load_collection("grocerystore", str(tmp_path))
    assert found.image_ids.tolist() == ["train/a, b.jpg", "train/c.jpg", "test/d.jpg"]
    assert found.labels.tolist() == [7, 0, 80]
    assert found.coarse.tolist() == [3, 0, 42]
    assert found.coarse.dtype == np.int64
    (tmp_path / "val.txt").write_text("val/e.jpg, 1, 1\nval/f.jpg, apple\n")
    with pytest.raises(UserError, match=r"val.txt:2: found 'val/f.jpg, apple'"):
        load_collection("grocerystore", str(tmp_path))
    (tmp_path / "val.txt").unlink()
    with pytest.raises(UserError, match=r"has no val.txt"):
        load_collection("grocerystore", str(tmp_path))
    (tmp_path / "val.txt").write_text("val/e.jpg, 7, 4\n")
    with pytest.raises(UserError, match=r"label '7' has coarse labels '3' \(image 'train/a, b.jpg'\) and '4'"):
        load_collection("grocerystore", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("path,label\na.png,5\n\n./b/c.png,-2\n", [5, -2]),  # header, integers as they are
        ("a.png,pear\r\nb/c.png, apple \r\n", [1, 0]),  # names in sorted order
        ("\ufeffa.png,1\nb/c.png,x\n", [0, 1]),  # one name makes all of them names
        (f"a.png,{2**63 - 1}\nb/c.png,-{2**63 - 1}\n", [2**63 - 1, 1 - 2**63]),
        (f"a.png,{2**63}\nb/c.png,1\n", [1, 0]),  # a number too large for 64 bits is a name
    ],
)
def test_csv(tmp_path, text, labels):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    save(tmp_path / "a.png", BLUE)
    found = load_collection("csv", str(tmp_path / "list.csv"))
    assert found.image_ids.tolist() == ["a.png", "b/c.png"]
    assert found.labels.tolist() == labels
    assert found.coarse is None
    assert found.read(0).getpixel((0, 0)) == BLUE
    with pytest.raises(FileNotFoundError):
        found.read(1)


@pytest.mark.parametrize(
    ("text", "labels", "coarse"),
    [
        ("Path,Label,Coarse\na,5,9\nb,-2,-7\n\nc,+5,09\n", [5, -2, 5], [9, -7, 9]),  # each spelling of a number
        ("a,kiwi,fruit\nb,pear, fruit\nc,cup,dish\n", [1, 2, 0], [1, 1, 0]),  # each column in its own sorted order
        ("a,7,fruit\nb,3,dish\nc,3,dish\n", [7, 3, 3], [1, 0, 0]),
        ("path,label,other\na,x,1\nb,x,1\n", [0, 1, 1], [1, 0, 0]),  # no header: an image called path
    ],
)
def test_csv_with_coarse_labels(tmp_path, text, labels, coarse):
    (tmp_path / "list.csv").write_text(text)
    found = load_collection("csv", str(tmp_path / "list.csv"))
    assert found.labels.tolist() == labels
    assert found.coarse.tolist() == coarse
    assert found.coarse.dtype == np.int64


def test_fingerprint_tells_collections_apart(tmp_path):
    (tmp_path / "list.csv").write_text("a,3,1\nb,4,1\n")
    found = load_collection("csv", str(tmp_path / "list.csv"))
    others = [
        found._replace(coarse=None), found._replace(coarse=found.coarse + 1), found._replace(labels=found.labels + 1),
        found._replace(image_ids=found.image_ids[::-1]), found._replace(coarse=found.labels, labels=found.coarse),
    ]  # fmt: skip
    assert len({fingerprint(other) for other in [found, *others]}) == 6
    # without coarse labels it is what files of collections without them have always recorded
    assert fingerprint(others[0]) == hashlib.sha256(b'[["a", 3], ["b", 4]]').hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,1\nb.png\n", r"list.csv:2: found 'b.png'"),
        ("a.png\n", r"list.csv:1: found 'a.png'; write 'path,label' or 'path,label,coarse', the same in every line"),
        ("a.png,1,2,3\n", r"list.csv:1: found 'a.png,1,2,3'"),
        ("a.png,1,2\nb.png,1\n", r"list.csv:2: found 'b.png,1'"),
        ("path,label\na.png,1,2\n", r"list.csv:2: found 'a.png,1,2'"),
        ("path,label,coarse\na.png,1\n", r"list.csv:2: found 'a.png,1'"),
        ("a.png,1,2\nb.png,2,\n", r"list.csv:2: found 'b.png,2,'"),
        ("path,label,coarse\n", "no line in"),
        (
            "a,cup,dish\nb,pear,fruit\nc,cup,toy\n",
            r"in .*list.csv, label 'cup' has coarse labels 'dish' \(image 'a'\) and 'toy' \(image 'c'\); give all",
        ),
        ("a,1,5\nb,01,6\n", r"label '01' has coarse labels '5' .* and '6'"),  # the same number
        ("a.png,1\nb.png,\n", r"list.csv:2"),
        ("path,label\n", "no line in"),
        ("a.png,1\nb.png,2\na.png,1\n", "'a.png' is listed twice"),
        ("a.png,1\n\xff\x00".encode("latin-1"), "not a CSV file"),
    ],
)
def test_csv_errors(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        load_collection("csv", str(tmp_path / "list.csv"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_nothing_there(tmp_path, name):
    with pytest.raises(UserError, match=r"^config\.features\.images: "):
        load_collection(name, str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"^config\.features\.images: "):
        load_collection(name, str(tmp_path))
    with pytest.raises(UserError, match=r"^config\.features\.images: empty"):
        load_collection(name, "")


def test_unknown_collection():
    with pytest.raises(
        UserError, match=r"config.features.collection: 'ukbnch' is unknown; take one of folder, ukbench"
    ):
        load_collection("ukbnch", "x")


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


def test_tfds_split_without_tensorflow(tmp_path):
    """A tiny data set, prepared as array_record, is read back; the same as TFRecord says what to do."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # looked up through a package that only other data sets need

        def _info(self):
            label = tfds.features.ClassLabel(num_classes=9)
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for number in range(3):
                save(tmp_path / "x.png", (50 * number, 0, 0), (5, 2))  # encoded already: tfds would ask TensorFlow
                yield number, {"image": str(tmp_path / "x.png"), "label": number + 4}

    builder = Tiny(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    found = load_collection("tfds", f"{builder.data_dir}@test")
    assert sorted(found.labels.tolist()) == [4, 5, 6]
    for row in range(3):
        image = found.read(row)
        assert image.size == (5, 2)
        assert image.getpixel((0, 0))[0] == 50 * (found.labels[row] - 4)
    with pytest.raises(UserError, match=r"array_record"):
        load_collection("tfds", f"{builder.data_dir}@validation")
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"made with download_and_prepare\(file_format='array_record'\)"):
        load_collection("tfds", f"{builder.data_dir}@test")
