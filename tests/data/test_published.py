"""Miniatures of published data sets, laid out as their authors did."""

import numpy as np
import pytest
from scipy.io import savemat

from prism_dml.data import image_file, read_table


def names(table):
    return [table.classes[k] for k in table.labels]


def write(root, **files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def files(table):
    return [image_file(table.images, i) for i in range(len(table))]


@pytest.fixture
def cub(tmp_path):
    write(
        tmp_path,
        **{
            "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n10 010.Crow\n11 011.Cowbird\n",
            "images.txt": "1 001.Black_footed_Albatross/a.jpg\n2 010.Crow/b 2.jpg\n3 002.Laysan_Albatross/c.jpg\n"
            "4 011.Cowbird/d.jpg\n",
            "image_class_labels.txt": "1 1\n2 10\n3 2\n4 11\n",
            "train_test_split.txt": "1 0\n2 1\n3 0\n4 1\n",  # of another task
        },
    )
    (tmp_path / "images" / "001.Black_footed_Albatross").mkdir(parents=True)
    return tmp_path


def test_cub(cub):
    table = read_table(cub)
    assert names(table) == ["001.Black_footed_Albatross", "010.Crow", "002.Laysan_Albatross", "011.Cowbird"]
    assert table.splits.tolist() == ["train", "test", "train", "test"]
    assert files(table)[1] == cub / "images" / "010.Crow" / "b 2.jpg"
    assert read_table(cub, "test").classes == ["010.Crow", "011.Cowbird"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("image_class_labels.txt", "1 1\n2 10\n3 2\n", "image 4 has no class"),
        ("image_class_labels.txt", "1 1\n2 10\n3 2\n4 12\n", "image 4 has no class"),
        ("images.txt", "a/b.jpg\n", "images.txt, line 1: expected a number and a name"),
        ("classes.txt", "", "classes.txt: the file is empty"),
    ],
)
def test_damaged_cub(cub, file, text, message):
    (cub / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_table(cub)


def annotations(*records):
    """As MATLAB writes a struct array: bounding box, class, file name."""
    box = [(f"bbox_{side}", "O") for side in ("x1", "y1", "x2", "y2")]
    array = np.zeros((1, len(records)), dtype=[*box, ("class", "O"), ("fname", "O")])
    for place, (number, name) in enumerate(records):
        array[0, place] = (1, 2, 3, 4, number, name)
    return {"annotations": array}


@pytest.fixture
def cars(tmp_path):
    devkit = tmp_path / "devkit"
    devkit.mkdir()
    classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo", "BMW M3"]
    savemat(devkit / "cars_meta.mat", {"class_names": np.array([classes], dtype=object)})
    savemat(devkit / "cars_train_annos.mat", annotations((2, "00001.jpg"), (3, "00002.jpg")))
    test = annotations((1, "00001.jpg"), (4, "00002.jpg"))
    savemat(tmp_path / "cars_test_annos_withlabels.mat", test)
    return tmp_path


def test_cars_pools_both_of_its_splits(cars):
    table = read_table(cars)
    assert names(table) == ["Acura RL Sedan 2012", "smart fortwo", "AM General Hummer SUV 2000", "BMW M3"]
    assert table.splits.tolist() == ["train", "test", "train", "test"]
    assert table.paths == [
        f"cars_{part}/{name}.jpg" for part in ("train", "test") for name in ("00001", "00002")
    ]


def test_cars_without_labels_of_the_test_images(cars):
    whole = (cars / "cars_test_annos_withlabels.mat").read_bytes()
    for length in range(0, len(whole), 16):  # what is raised depends on where it ends
        (cars / "cars_test_annos_withlabels.mat").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a MATLAB file"):
            read_table(cars)
    (cars / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(ValueError, match="cars_test_annos_withlabels.mat: the file is missing"):
        read_table(cars)
    (cars / "devkit" / "cars_test_annos_withlabels.mat").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a MATLAB file"):
        read_table(cars)


def test_cars_with_a_single_image_and_a_class_that_is_not_there(cars):
    savemat(cars / "cars_test_annos_withlabels.mat", annotations((4, "00001.jpg")))
    assert len(read_table(cars)) == 3
    savemat(cars / "cars_test_annos_withlabels.mat", annotations((5, "00001.jpg")))
    with pytest.raises(ValueError, match="00001.jpg has class 5, but there are 4 classes"):
        read_table(cars)


HEADER = "image_id class_id super_class_id path\n"


def test_products(tmp_path):
    write(
        tmp_path,
        **{
            "Ebay_train.txt": HEADER
            + "1 1 1 bicycle_final/111085122871_0.JPG\n2 9 1 bicycle_final/2_0.JPG\n",
            "Ebay_test.txt": HEADER + "3 11319 1 chair_final/3_0.JPG\n",
            "bicycle_final/111085122871_0.JPG": "",
        },
    )
    table = read_table(tmp_path)
    assert names(table) == ["1", "9", "11319"]
    assert table.splits.tolist() == ["train", "train", "test"]
    assert files(table)[0] == tmp_path / "bicycle_final" / "111085122871_0.JPG"
    write(tmp_path, **{"Ebay_test.txt": HEADER + "3 11319 chair_final/3_0.JPG\n"})
    with pytest.raises(ValueError, match="Ebay_test.txt, line 2: expected 4 fields, found 3"):
        read_table(tmp_path)


CLASSES = "apple_pie\nbaklava\nwaffles\nzuppa\nzwieback\n"


def test_food_101(tmp_path):
    write(
        tmp_path,
        **{
            "meta/classes.txt": CLASSES,
            "meta/train.txt": "apple_pie/1\nwaffles/2\n",
            "meta/test.txt": "apple_pie/3\nzuppa/4\n",
            "images/apple_pie/1.jpg": "",
        },
    )
    table = read_table(tmp_path)
    assert names(table) == ["apple_pie", "waffles", "apple_pie", "zuppa"]
    assert table.splits.tolist() == ["train", "test", "train", "test"]  # two of five classes, as 50 of 101
    assert files(table)[0] == tmp_path / "images" / "apple_pie" / "1.jpg"


@pytest.fixture
def food_101n(tmp_path):
    write(
        tmp_path,
        **{
            "meta/classes.txt": "class_name\n" + CLASSES,
            "meta/imagelist.tsv": "class_name/key\napple_pie/a.jpg\nbaklava/b.jpg\nzuppa/c.jpg\n",
            "meta/verified_train.tsv": "class_name/key\tverification_label\napple_pie/a.jpg\t1\nbaklava/b.jpg\t0\n",
        },
    )
    return tmp_path


def test_food_101n(food_101n):
    table = read_table(food_101n)
    assert names(table) == ["apple_pie", "baklava", "zuppa"]
    assert table.splits.tolist() == ["train", "train", "test"]
    assert table.clean_labels is None


def test_verified_part_of_food_101n(food_101n):
    table = read_table(food_101n / "meta" / "verified_train.tsv")
    assert table.is_noisy.tolist() == [False, True]
    assert table.clean_labels.tolist() == [0, -1]
    assert files(table)[0] == food_101n / "images" / "apple_pie" / "a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class_name/key\tverification_label\na/b.jpg\tyes\n", "line 2: verification_label must be 0 or 1"),
        ("class_name/key\tverification_label\na/b.jpg\n", "line 2: 1 fields, but the header has 2"),
        ("class_name/key\nb.jpg\n", "not as CLASS/IMAGE"),
        ("class_name/key\n", "the list of images is empty"),
    ],
)
def test_damaged_food_101n(food_101n, text, message):
    file = food_101n / "meta" / "verified_val.tsv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_table(file)


def test_food_without_its_classes(food_101n):
    (food_101n / "meta" / "classes.txt").unlink()
    with pytest.raises(ValueError, match="classes.txt: the file is missing"):
        read_table(food_101n)
