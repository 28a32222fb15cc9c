"""Miniature copies of the published data sets in the layout of their authors: splits, labels, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features.collection import load_collection
from fgis.features.store import load_features, open_rows, write_features


def save(path, colour=(200, 10, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def cub(tmp_path):
    root, images = (
        tmp_path / "CUB_200_2011",
        ("100.Brown_Pelican/a_1.jpg", "101.White_Pelican/b 2.jpg", "001.Albatross/c.jpg"),
    )
    for name in images:
        save(root / "images" / name)
    write(root / "images.txt", *(f"{i} {name}" for i, name in enumerate(images, 1)))
    write(root / "image_class_labels.txt", "1 100", "2 101", "3 1")
    write(root / "classes.txt", "1 001.Albatross", "100 100.Brown_Pelican", "101 101.White_Pelican")
    return root


def test_cub_splits_its_classes_in_two_halves(cub):
    train, test = (load_collection("cub", f"{cub}@{split}") for split in ("train", "test"))
    assert train.image_ids.tolist() == ["100.Brown_Pelican/a_1.jpg", "001.Albatross/c.jpg"]
    assert train.label_names == ("001.Albatross", "100.Brown_Pelican")
    assert train.labels.tolist() == [1, 0]
    assert test.image_ids.tolist() == ["101.White_Pelican/b 2.jpg"]
    assert test.read(0).size == (6, 4)
    assert test.is_query is None


def test_cars_have_their_classes_in_a_matlab_file(tmp_path):
    root, kind = tmp_path / "cars196", [("relative_im_path", "O"), ("class", "O"), ("test", "O")]
    images = [("car_ims/000001.jpg", 98, 0), ("car_ims/000002.jpg", 99, 1), ("car_ims/000003.jpg", 1, 0)]
    for name, *_ in images:
        save(root / name)
    names = np.array([f"Car {number}" for number in range(1, 100)], object)
    savemat(root / "cars_annos.mat", {"annotations": np.array(images, kind), "class_names": names})
    train, test = (load_collection("cars196", f"{root}@{split}") for split in ("train", "test"))
    assert train.image_ids.tolist() == ["car_ims/000001.jpg", "car_ims/000003.jpg"]
    assert train.label_names == ("Car 1", "Car 98")
    assert test.label_names == ("Car 99",)
    assert test.read(0).size == (6, 4)
    (root / "cars_annos.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"cars_annos.mat: no annotations of Cars196 \("):
        load_collection("cars196", f"{root}@test")


def test_online_products_have_super_classes(tmp_path):
    root = tmp_path / "Stanford_Online_Products"
    header = "image_id class_id super_class_id path"
    write(root / "Ebay_train.txt", header, "1 1 1 bicycle_final/a_0.JPG", "2 2 1 bicycle_final/b_0.JPG")
    write(root / "Ebay_test.txt", header, "59552 11319 2 cabinet_final/c_0.JPG")
    save(root / "cabinet_final" / "c_0.JPG")
    train, test = (load_collection("online_products", f"{root}@{split}") for split in ("train", "test"))
    assert (train.labels.tolist(), train.coarse.tolist()) == ([1, 2], [1, 1])
    assert (test.labels.tolist(), test.coarse.tolist()) == ([11319], [2])
    assert test.read(0).size == (6, 4)
    write(root / "Ebay_test.txt", "59552 11319 2 cabinet_final/c_0.JPG")
    with pytest.raises(UserError, match=r"Ebay_test.txt:1: found .* the header .image_id"):
        load_collection("online_products", f"{root}@test")


SHOP = (
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
    ("img/MEN/Denim/id_00000080/01_2_side.jpg", "id_00000080", "gallery"),
)


@pytest.mark.parametrize(("list_folder", "image_folder"), [("Eval", "Img"), (".", ".")])
def test_in_shop_says_which_images_are_queries(tmp_path, list_folder, image_folder):
    for name, *_ in SHOP:
        save(tmp_path / image_folder / name)
    lines = ("3", "image_name item_id evaluation_status", *("  ".join(one) for one in SHOP))
    write(tmp_path / list_folder / "list_eval_partition.txt", *lines)
    train, test = (load_collection("in_shop", f"{tmp_path}@{split}") for split in ("train", "test"))
    assert (len(train.labels), train.is_query) == (1, None)
    assert test.is_query.tolist() == [True, False]
    assert test.label_names == ("id_00000080",)
    assert test.read(1).size == (6, 4)
    write(tmp_path / list_folder / "list_eval_partition.txt", *lines[:2], "img/a.jpg id_1 validation")
    with pytest.raises(UserError, match=r"partition.txt:3: found 'img/a.jpg id_1 validation'; write"):
        load_collection("in_shop", f"{tmp_path}@train")


@pytest.mark.parametrize(
    ("name", "images", "words"),
    [
        ("cub", "{root}", "names no split; write its folder and @train or @test, such as cub@train"),
        ("cub", "{root}@val", "names no split"),
        ("cub", "{root}/nowhere@train", "no directory"),
        ("cub", "{root}@train", "classes.txt: no such file; name the folder that the data set was unpacked into"),
        ("online_products", "{root}@train", "Ebay_train.txt: no such file"),
        ("cars196", "{root}@test", "cars_annos.mat: no annotations of Cars196 .No such file or directory."),
        ("in_shop", "{root}@test", "Eval/list_eval_partition.txt: no such file"),
    ],
)
def test_another_layout_is_refused_in_one_line(tmp_path, name, images, words):
    with pytest.raises(ValueError, match=words) as error:
        load_collection(name, images.format(root=tmp_path))
    assert "\n" not in str(error.value)


def test_lists_that_do_not_belong_together(cub):
    write(cub / "image_class_labels.txt", "1 100", "2 101")
    with pytest.raises(UserError, match=r"images.txt:3: image 3 has no class"):
        load_collection("cub", f"{cub}@train")
    write(cub / "image_class_labels.txt", "1 100", "2 101", "3")
    with pytest.raises(UserError, match=r"image_class_labels.txt:3: found '3'; 2 columns belong there"):
        load_collection("cub", f"{cub}@train")


def test_feature_files_keep_which_images_are_queries(tmp_path):
    path, features = tmp_path / "x.h5", np.eye(3, dtype=np.float32)
    content = FeatureSet(
        features, np.array([5, 5, 6]), np.array(["a", "b", "c"]), {}, is_query=np.array([True, False, False])
    )
    write_features(path, content)
    assert load_features(path).is_query.tolist() == open_rows(path).is_query.tolist() == [True, False, False]
    write_features(path, content._replace(is_query=None))
    assert load_features(path).is_query is None
    write_features(path, content._replace(is_query=np.array([True, True, True])))
    with pytest.raises(UserError, match="is_query does not say which of 3 images are queries"):
        load_features(path)
