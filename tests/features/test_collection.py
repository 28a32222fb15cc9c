"""Listings by hand on small trees, headers, hidden files, Unicode in names, and the errors of each collection."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features.collection import COLLECTIONS, fingerprint, load_collection
from fgis.features.lookup import picture_finder, row_finder

RED, BLUE = (200, 10, 20), (20, 10, 200)


def save(path, colour=RED, size=(4, 3), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def test_folder(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/er.PNG", "c c/x.png", "logo.png/z.png", "a/deep.jpg/y.png"):
        save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    found = load_collection("folder", str(tmp_path))
    assert found.image_ids.tolist() == [
        "a/deep.jpg/y.png", "a/deep/er.PNG", "b/1.png", "b/2.png", "c c/x.png", "logo.png/z.png"
    ]  # fmt: skip
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 4]
    assert found.labels.dtype == np.int64
    assert found.coarse is None
    assert found.label_names == ("a", "b", "c c", "empty", "logo.png")


def test_hidden_files_are_ignored_at_every_depth(tmp_path):
    hidden = (".hidden/x.png", "a/.x.png", "a/._1.png", "a/.cache/x.png", "a/deep/.git/more/x.png", "._stray.png")
    for name in ("a/1.png", "a/deep/2.png", *hidden):
        save(tmp_path / name)
    found = load_collection("folder", str(tmp_path))
    assert found.image_ids.tolist() == ["a/1.png", "a/deep/2.png"]
    assert found.label_names == ("a",)
    save(tmp_path / "._ukbench00001.jpg")
    save(tmp_path / "ukbench00002.jpg")
    assert load_collection("ukbench", str(tmp_path)).image_ids.tolist() == ["ukbench00002.jpg"]


def test_folder_refuses_what_it_would_leave_out(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"^images: .*'stray.png' first of 1"):
        load_collection("folder", str(tmp_path))


COMPOSED, DECOMPOSED = "caf\u00e9.png", "cafe\u0301.png"


def test_rows_in_the_other_normalisation():
    find = row_finder(np.array(["tea.png", DECOMPOSED]))
    assert [find(name) for name in ("tea.png", COMPOSED, DECOMPOSED, "caf.png")] == [0, 1, 1, None]
    both = row_finder([DECOMPOSED, COMPOSED])  # two files on most systems
    assert [both(DECOMPOSED), both(COMPOSED)] == [0, 1]


@pytest.mark.parametrize(("stored", "written"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_pictures_in_the_other_normalisation(tmp_path, stored, written):
    save(tmp_path / "a" / stored, BLUE)
    picture = picture_finder(load_collection("folder", str(tmp_path)))
    assert picture(f"a/{written}").getpixel((0, 0)) == picture(f"a/{stored}").getpixel((0, 0)) == BLUE
    (tmp_path / "list.csv").write_text(f"title,any\na/{written},1\n", encoding="utf-8")
    listed = load_collection("csv", str(tmp_path / "list.csv"))
    assert listed.image_ids.tolist() == [f"a/{written}"]
    assert listed.read(0).getpixel((0, 0)) == BLUE


def test_no_picture(tmp_path):
    save(tmp_path / "a" / "1.png", BLUE)
    save(tmp_path / "a" / "2.png")
    collection = load_collection("folder", str(tmp_path))
    (tmp_path / "a" / "2.png").write_text("damaged since")
    picture = picture_finder(collection)
    assert picture("a/1.png").getpixel((0, 0)) == BLUE
    assert picture("a/2.png") is None
    assert picture("1.png") is None


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
    assert found.label_names is None
    assert found.coarse.tolist() == [3, 0, 42]
    assert found.coarse.dtype == np.int64
    (tmp_path / "val.txt").write_text("val/e.jpg, 1, 1\nval/f.jpg, apple\n")
    with pytest.raises(UserError, match=r"^/.*val.txt:2: found 'val/f.jpg, apple'"):
        load_collection("grocerystore", str(tmp_path))
    (tmp_path / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"^images: .* has no val.txt"):
        load_collection("grocerystore", str(tmp_path))
    (tmp_path / "val.txt").write_text("val/e.jpg, 7, 4\n")
    with pytest.raises(UserError, match=r"^/.*val.txt:1: label '7' has coarse label '4' .*, but '3' at .*train.txt:1"):
        load_collection("grocerystore", str(tmp_path))


def test_grocerystore_class_names(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name}/a.jpg, {len(name) - 3}, 0\n")  # labels 2, 0 and 1
    names, header = tmp_path / "classes.csv", "Class Name (str),Class ID (int),Coarse Class Name (str)\n"
    names.write_text(header + 'Pear,2,Fruit\nKiwi,0,Fruit\n\n"Lime, green",1,Fruit\n')
    assert load_collection("grocerystore", str(tmp_path)).label_names == ("Kiwi", "Lime, green", "Pear")
    for text, message in (
        (header + "Kiwi,0\nPear,2\n", "classes.csv: no class has id 1"),
        (header + "Kiwi,0\nLime,1\n", "classes.csv: no class has id 2"),
        (header + "Kiwi,0\nLime,0\n", "classes.csv:3: class name 'Lime' and id '0'"),
        (header + "Kiwi,zero\n", "classes.csv:2: class name 'Kiwi' and id 'zero'"),
        (header + "Kiwi\n", "classes.csv:2: class name 'Kiwi' and id ''"),
        ("Kiwi,0\n", "classes.csv:1: found 'Kiwi,0'; the first line must name the columns"),
        ("", "classes.csv:1: found ''"),
    ):
        names.write_text(text)
        with pytest.raises(UserError, match=rf"^/.*{message}"):
            load_collection("grocerystore", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("path,label\na.png,5\n\n./b/c.png,-2\n", [5, -2], None),  # header, integers as they are
        ("a.png,pear\r\nb/c.png, apple \r\n", [1, 0], ("apple", "pear")),  # names in sorted order
        ("\ufeffa.png,1\nb/c.png,x\n", [0, 1], ("1", "x")),  # one name makes all of them names
        (f"a.png,{2**63 - 1}\nb/c.png,-{2**63 - 1}\n", [2**63 - 1, 1 - 2**63], None),
        (f"a.png,{2**63}\nb/c.png,1\n", [1, 0], ("1", str(2**63))),  # a number too large for 64 bits is a name
        ("\nImage,Label\na.png,1\nb/c.png,2\n", [1, 2], None),
        ("filename,class\na.png,1\nb/c.png,2\n", [1, 2], None),
        ("photo,object\na.png,1\nb/c.png,2\n", [1, 2], None),  # no file of that name, but one in the second line
    ],
)
def test_csv(tmp_path, text, labels, names):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    save(tmp_path / "a.png", BLUE)
    found = load_collection("csv", str(tmp_path / "list.csv"))
    assert found.image_ids.tolist() == ["a.png", "b/c.png"]
    assert found.labels.tolist() == labels
    assert found.label_names == names
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
        ("path,object,other\na,x,1\nb,x,1\n", [0, 0], [1, 1]),  # the words of the other columns are free
    ],
)
def test_csv_with_coarse_labels(tmp_path, text, labels, coarse):
    (tmp_path / "list.csv").write_text(text)
    found = load_collection("csv", str(tmp_path / "list.csv"))
    assert found.labels.tolist() == labels
    assert found.coarse.tolist() == coarse
    assert found.coarse.dtype == np.int64


@pytest.mark.parametrize(
    "text",
    [
        "gone.png,1\nhere.png,2\n",  # an image that is missing is no header
        "gone,1\ngone too,2\n",  # nor is an unknown word where the second file is missing as well
        "path,1\nhere.png,2\n",  # nor is a file
    ],
)
def test_csv_without_header(tmp_path, text):
    save(tmp_path / "here.png")
    save(tmp_path / "path", format="PNG")
    (tmp_path / "list.csv").write_text(text)
    assert load_collection("csv", str(tmp_path / "list.csv")).labels.tolist() == [1, 2]


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
        ("path,label,coarse\n", "^images: no image in"),
        (
            "a,cup,dish\nb,pear,fruit\nc,cup,toy\n",
            r"list.csv:3: label 'cup' has coarse label 'toy' \(image 'c'\), but 'dish' at .*:1 \(image 'a'\); give all",
        ),
        ("a,1,5\nb,01,6\n", r"list.csv:2: label '01' has coarse label '6' .*, but '5' at"),  # the same number
        ("a.png,1\nb.png,\n", r"list.csv:2"),
        ("path,label\n", "^images: no image in"),
        ("a.png,1\nb.png,2\na.png,1\n", "list.csv:3: image 'a.png' is listed twice, first at .*list.csv:1"),
        ("a.png,1\n\xff\x00".encode("latin-1"), "list.csv: cannot be read as text in UTF-8"),
        ('a.png,1\n"b.png,2\n', "list.csv:2: not CSV"),
    ],
)
def test_csv_errors(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_collection("csv", str(tmp_path / "list.csv"))
    assert isinstance(error.value, UserError) != str(error.value).startswith("images: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_nothing_there(tmp_path, name):
    with pytest.raises(ValueError, match=r"^images: "):
        load_collection(name, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"^images: "):
        load_collection(name, str(tmp_path))
    with pytest.raises(ValueError, match=r"^images: empty"):
        load_collection(name, "")


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "photos" / "a" / "1.png")
    assert load_collection("folder", "~/photos").image_ids.tolist() == ["a/1.png"]


def test_unknown_collection():
    with pytest.raises(ValueError, match=r"^collection: 'ukbnch' is unknown; did you mean 'ukbench'\?"):
        load_collection("ukbnch", "x")


def test_tfds_split_without_tensorflow(tmp_path):
    """A tiny data set, prepared as array_record, is read back; the same as TFRecord says what to do."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # looked up through a package that only other data sets need

        def _info(self):
            label = tfds.features.ClassLabel(names=[f"class {i}" for i in range(9)])
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
    assert found.label_names == tuple(f"class {i}" for i in range(9))
    for row in range(3):
        image = found.read(row)
        assert image.size == (5, 2)
        assert image.getpixel((0, 0))[0] == 50 * (found.labels[row] - 4)
    with pytest.raises(ValueError, match=r"^images: .*array_record"):
        load_collection("tfds", f"{builder.data_dir}@validation")
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"made with download_and_prepare\(file_format='array_record'\)"):
        load_collection("tfds", f"{builder.data_dir}@test")
