"""Image sets as people deliver them: other words, layouts, tables and names than ours."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onenip.data.manifest import scan_layout
from onenip.data.validation.measuring import list_files, measure
from onenip.errors import SourceError
from onenip.images import load_mask
from onenip.sources.folder import place_folder
from onenip.sources.items import Workspace
from onenip.sources.layout import arrange
from onenip.sources.resolving import resolve_source
from onenip.sources.staging import Staging
from tests.paths import CASES


def place(case, folder="set"):
    """Where the files of a case go: target by path."""
    root = CASES / case / folder
    items = place_folder(root, name=root.name, origin=case)
    return {item.file.relative_to(root).as_posix(): item.target for item in items}


def fetch(path, tmp_path):
    """Targets of what a source brings, sorted."""
    workspace = Workspace(tmp_path / "work", tmp_path / "data")
    return sorted(item.target for item in resolve_source(str(path)).fetch(workspace).items)


@pytest.mark.parametrize("case", ["test-normal", "good-with-trailing-space"])
def test_other_words_for_normal_are_good(case):
    """`test/normal` and `test/good ` hold normal images."""
    placed = place(case)

    assert placed["part/train/good/000.png"] == "part/train/good/000.png"
    assert {t.split("/")[2] for t in placed.values() if "/test/" in t} <= {"good", "hole"}
    assert sum(t.startswith("part/test/hole") for t in placed.values()) == 2


def test_one_product_of_ok_and_ng():
    """One category: OK trains, NG is a defect, and no category is called by a label."""
    placed = place("ok-ng-one-product")

    assert {target.rpartition("/")[0] for target in placed.values()} == {
        "part/train/good",
        "part/test/NG",
    }
    assert all(("/NG/" in path) == ("/NG/" in target) for path, target in placed.items())


@pytest.mark.parametrize(
    ("normal", "defective"),
    [("OK_images", "NG_images"), ("0_ok", "1_ng"), ("good parts", "bad parts"), ("OK1", "NG1"),
     ("Gutteile", "KO"), ("keine Fehler", "Fehler (2)"), ("no_anomaly", "scrap"), ("OK_Bilder", "Ausschuss")],
)  # fmt: skip
def test_folders_of_one_product_in_other_words(normal, defective):
    """Numbers, nouns, plurals and denials around a label change nothing; none of them becomes a product."""
    paths = [f"p/{normal}/1.png", f"p/{defective}/2.png"]

    placed = {place.path: place.target for place in arrange(paths, name="nut", origin="x")}

    assert placed[paths[0]] == "p/train/good/1.png"
    assert placed[paths[1]] == f"p/test/{defective}/2.png"


def test_folders_of_labels_with_masks():
    """good, crack and mask/crack beside one another, for one or for several products."""
    paths = ["good/0.png", "crack/1.png", "mask/crack/1.png"]
    expected = {"train/good/0.png", "test/crack/1.png", "ground_truth/crack/1_mask.png"}

    one = arrange(paths, name="nut", origin="x")
    two = arrange([f"{c}/{p}" for c in ("nut", "cap") for p in paths], name="x", origin="x")

    assert {p.target for p in one} == {f"nut/{path}" for path in expected}
    assert {p.target for p in two} == {f"{c}/{path}" for c in ("nut", "cap") for path in expected}


@pytest.mark.parametrize(
    ("image", "mask", "target"),
    [
        ("test/hole/0.png", "masks/hole/0.png", "ground_truth/hole/0_mask.png"),
        ("test/hole/0.png", "Ground Truth/Hole/0_gt.png", "ground_truth/hole/0_mask.png"),
        ("test/hole/0.png", "test/hole/0_mask.png", "ground_truth/hole/0_mask.png"),
        ("NG/0.png", "NG/0-label.png", "ground_truth/NG/0_mask.png"),
        ("NG/IMG.png", "gt/ng/img_mask.png", "ground_truth/NG/IMG_mask.png"),
        ("NG/0.png", "NG_mask/0.png", "ground_truth/NG/0_mask.png"),
        ("test/hole/0.png", "test/hole-gt/0.png", "ground_truth/hole/0_mask.png"),
    ],
)
def test_masks_are_found_in_other_places(image, mask, target):
    """In another folder, in another case, or beside their images, where they are no images of the test."""
    normal = "train/good/9.png" if image.startswith("test") else "OK/9.png"
    paths = [f"nut/{path}" for path in (image, mask, normal, "readme.txt")]

    placed = {place.path: place.target for place in arrange(paths, name="x", origin="x")}

    assert placed[f"nut/{mask}"] == f"nut/{target}"
    assert sum("/test/" in place for place in placed.values()) == 1


def test_a_mask_among_the_images_of_the_data_is_named(tiny_data, tmp_path):
    """Where nobody sorted it out before, validation does not take it for a defective part."""
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    mask = data / "disc/ground_truth/spot/000_mask.png"
    shutil.copy(mask, data / "disc/train/good")
    shutil.move(mask, data / "disc/test/spot/000_mask.png")

    found = {file.path: file for file in list_files(data)}

    assert "a mask by its name" in found["disc/test/spot/000_mask.png"].stray
    assert "a mask by its name" in found["disc/train/good/000_mask.png"].stray
    assert found["disc/test/spot/000.png"].label == "spot"


def test_other_places_of_validation_and_masks():
    """Normals of val train; ground_truth beside folders of labels holds their masks; IO-boards are boards."""
    paths = ["p/train/good/0.png", "p/val/good/1.png", "q/good/0.png", "q/hole/1.png",
             "q/ground_truth/hole/1.png", "IO-board/0.png", "relay 1/1.png"]  # fmt: skip

    assert [place.target for place in arrange(paths, name="x", origin="set")] == [
        "IO-board/train/good/0.png", "p/train/good/0.png", "p/train/good/val-1.png",
        "q/ground_truth/hole/1_mask.png", "q/test/hole/1.png", "q/train/good/0.png",
        "relay 1/train/good/1.png",
    ]  # fmt: skip


def test_mvtec_ad_2_as_it_unpacks():
    """Public tests are tests, validation trains, private images without labels are left out by name."""
    placed = arrange(
        [
            "can/train/good/0.png",
            "can/validation/good/0.png",
            "can/test_public/good/1.png",
            "can/test_public/bad/2.png",
            "can/test_public/ground_truth/bad/2_mask.png",
            "can/test_private/3.png",
        ],
        name="x",
        origin="x",
    )

    assert {place.target for place in placed} == {
        "can/train/good/0.png",
        "can/train/good/validation-0.png",
        "can/test/good/1.png",
        "can/test/bad/2.png",
        "can/ground_truth/bad/2_mask.png",
    }


def test_masks_of_one_image_are_united(tmp_path):
    """MVTec LOCO's folder of masks per image becomes one mask with all of them."""
    root = tmp_path / "set"
    shutil.copytree(CASES / "layout-mvtec-loco/set", root)
    second = np.zeros((32, 32), np.uint8)
    second[:3, :3] = 254
    Image.fromarray(second).save(root / "part/ground_truth/hole/000/001.png")
    first = load_mask(root / "part/ground_truth/hole/000/000.png")
    staging = Staging(tmp_path / "data", pointer=tmp_path / "data.dvc")

    with staging.locked():
        staged = staging.stage(place_folder(root, name="set", origin="x"))
        mask = load_mask(staging._tree / "part/ground_truth/hole/000_mask.png")

    assert "part/ground_truth/hole/001_mask.png" in staged
    assert mask.sum() == first.sum() + 9


def test_half_written_notes_of_killed_downloads_are_removed(tmp_path):
    """A draft of the journal or of the pointer is gone after the next download; other files stay."""
    staging = Staging(tmp_path / "data", pointer=tmp_path / "data.dvc")
    staging.folder.mkdir(parents=True)
    drafts = [staging.folder / ".journal.7-8.partial.json", tmp_path / ".data.7-8.partial.dvc"]
    others = [staging.folder / "other.json", tmp_path / ".other.7-8.partial.dvc"]
    for path in (*drafts, *others):
        path.write_text("{")

    with staging.locked():
        assert [path for path in (*drafts, *others) if path.exists()] == others


@pytest.mark.parametrize("folder", ["gt", "upper"])
def test_masks_are_found_by_other_names(folder):
    """At the first door they get the name that every stage knows."""
    targets = place("mask-names", folder).values()

    assert "part/ground_truth/hole/000_mask.png" in targets
    found = list_files(CASES / "mask-names" / folder)
    assert sum(bool(file.mask) for file in found) == 2
    assert not any(file.stray for file in found)
    samples = scan_layout(CASES / "mask-names" / folder, calibration_fraction=0, holdout_fraction=0)
    assert sum(sample.mask is not None for sample in samples) == 2


def test_a_linked_folder_is_entered_and_a_loop_is_not(tmp_path):
    """A category that is a link has its images; a link to a folder above ends."""
    shutil.copytree(CASES / "symlinked-folder", tmp_path / "case", symlinks=True)
    (tmp_path / "case/set/part").unlink()
    (tmp_path / "case/set/part").symlink_to(tmp_path / "case/store/part")
    (tmp_path / "case/set/bolt/again").symlink_to(tmp_path / "case/set")

    items = place_folder(tmp_path / "case/set", name="set", origin="x")
    found = list_files(tmp_path / "case/set")

    # the second lists masks with their images
    for targets, count in (([i.target for i in items], 30), ([f.path for f in found], 26)):
        assert {target.split("/")[0] for target in targets} == {"bolt", "part"}
        assert len(targets) == len(set(targets)) == count


@pytest.mark.parametrize("name", ["normal", "OK", "Good", "mixed"])
def test_labels_of_tables(name, tmp_path):
    """Every word for normal is good in a table, too; the others are defects."""
    targets = fetch(CASES / f"csv-labels/{name}.csv", tmp_path)

    assert sum("/train/good/" in target for target in targets) == 9
    assert sum("/test/" in t and "/good/" not in t for t in targets) == 2


def test_a_table_may_repeat_but_not_contradict_itself(tmp_path):
    """A row that comes twice is one image; one that is good and defective is refused, by its rows."""
    table = shutil.copytree(CASES / "csv-labels", tmp_path / "in") / "x.csv"
    table.write_text("path,category,label\nimages/0.png,part,ok\nimages/0.png,part,good\n")
    assert fetch(table, tmp_path) == ["part/train/good/0.png"]

    for again in ("images/0.png", "./images//0.png", "images\\0.png"):
        table.write_text(f"path,category,label\nimages/0.png,part,ok\n{again},part,NG\n")
        with pytest.raises(SourceError, match=r"row 3: .* is part/NG, but part/good in row 2"):
            fetch(table, tmp_path)


def test_a_table_finds_files_as_windows_and_macos_would(tmp_path):
    """Another case, or another form of the same letters; the data call it as the table does."""
    name = unicodedata.normalize("NFD", "Sch\u00fcssel")
    (tmp_path / "in/Bilder").mkdir(parents=True)
    shutil.copy(CASES / "csv-labels/images/0.png", tmp_path / f"in/Bilder/{name}.PNG")
    table = tmp_path / "in/x.csv"
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        table.write_text("path,category,label\nbilder/sch\u00fcssel.png,part,ok\n", encoding)
        assert fetch(table, tmp_path) == ["part/train/good/sch\u00fcssel.png"]

    table.write_text("path,category,label\nBilder/0.png,O-Ring 3,5mm,ok\n")
    with pytest.raises(SourceError, match="row 2: more cells than the header has columns"):
        fetch(table, tmp_path)


@pytest.mark.parametrize("name", ["semicolon", "trailing", "empty_rows"])
def test_tables_from_excel(name, tmp_path):
    """Semicolons, a BOM, a trailing delimiter and empty rows are read as meant."""
    expected = [f"part/train/good/{number}.png" for number in range(3)]

    assert fetch(CASES / f"csv-from-excel/{name}.csv", tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("windows.csv", "Path;Category;Label\r\nimages\\0.png;Dübel;0\r\n"),
        ("told.csv", "sep=;\r\npath;category;label\r\nimages\\0.png;Dübel;i.O.\r\n"),
        ("tabs.csv", "path\tcategory\tlabel\nimages/0.png\tDübel\tIO\n"),
        ("numbers.jsonl", '{"path": "images/0.png", "category": "Dübel", "label": 0}\n'),
        ("visa.csv", "object,split,label,image,mask\nDübel,train,normal,images/0.png,\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_tables_of_other_programs(name, text, encoding, tmp_path):
    """Paths of Windows, its encoding, tabs, numeric labels, and VisA's own names of columns."""
    shutil.copytree(CASES / "csv-from-excel/images", tmp_path / "in/images")
    if name.endswith("jsonl"):
        encoding = "utf-8"
    (tmp_path / "in" / name).write_bytes(text.encode(encoding))

    assert fetch(tmp_path / "in" / name, tmp_path) == ["Dübel/train/good/0.png"]


@pytest.mark.parametrize(
    ("encoding", "category", "label"),
    [("cp932", "部品", "良品"), ("gb18030", "零件", "合格"), ("cp949", "부품", "양품"),
     ("cp1251", "деталь", "годен"), ("cp1252", "Dübel", "OK")],
)  # fmt: skip
def test_tables_in_the_encodings_of_windows(encoding, category, label, tmp_path):
    """A word for normal shows which one it is, so that normal images are no defects of a strange name."""
    shutil.copytree(CASES / "csv-from-excel/images", tmp_path / "in/images")
    text = f"path,category,label\nimages/0.png,{category},{label}\n"
    (tmp_path / "in/set.csv").write_bytes(text.encode(encoding))

    assert fetch(tmp_path / "in/set.csv", tmp_path) == [f"{category}/train/good/0.png"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("coco.json", "COCO.*name the folder"), ("realiad.json", "Real-IAD.*write a CSV"),
     ("train.manifest", "s3://bucket/a.png is not here; copy")],
)  # fmt: skip
def test_formats_of_other_tools_are_named(name, kind, tmp_path):
    """What cannot be imported as it lies here says what it is, and what to do."""
    with pytest.raises(SourceError, match=kind):
        fetch(CASES / "label-files" / name, tmp_path)


def draw_product(folder, names):
    """Black images of 20x10 px."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(folder / name)
    return folder


def stage(source, tmp_path):
    """What a source brings, laid out: masks as rows of text by target, None for what is no mask."""
    workspace = Workspace(tmp_path / "work", tmp_path / "data")
    items = resolve_source(str(source)).fetch(workspace).items
    staging = Staging(tmp_path / "data", pointer=tmp_path / "data.dvc")
    with staging.locked():
        staging.stage(items)
        tree = tmp_path / ".onenip/download/data/tree"
        return {
            target: int(load_mask(tree / target).sum()) if "/ground_truth/" in target else None
            for target in sorted(item.target for item in items)
        }


SQUARE = [2, 2, 6, 2, 6, 6, 2, 6]  # 5x5 px with its outline
IMPORTED = {"part/ground_truth/hole/1_mask.png": 25, "part/test/hole/1.png": None,
            "part/train/good/0.png": None}  # fmt: skip


@pytest.mark.parametrize("images", ["", "images/", "images/default/"])
def test_coco_marks_what_is_defective(images, tmp_path):
    """Images with polygons are tests with masks, the others normal, wherever file and images lie."""
    root = draw_product(tmp_path / "part", [f"{images}0.png", f"{images}1.png"])
    one = {"image_id": 7, "category_id": 1, "segmentation": [SQUARE], "bbox": [2, 2, 4, 4]}
    content = {
        "images": [{"id": 3, "file_name": "0.png"}, {"id": 7, "file_name": "1.png"}],
        "annotations": [one],
        "categories": [{"id": 1, "name": "hole"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text(json.dumps(content))

    assert stage(root, tmp_path) == IMPORTED


@pytest.mark.parametrize(
    ("kind", "points", "area"),
    [("polygon", np.reshape(SQUARE, (4, 2)).tolist(), 25), ("rectangle", [[6, 6], [2, 2]], 25),
     ("rectangle", [[2, 2], [6, 2], [6, 6], [2, 6]], 25), ("circle", [[8, 5], [8, 8]], 37)],
)  # fmt: skip
def test_labelme_marks_what_is_defective(kind, points, area, tmp_path):
    """A file of polygons beside an image, with the path that Windows wrote."""
    root = draw_product(tmp_path / "part", ["0.png", "1.png"])
    for name, shapes in (
        ("0", []),
        ("1", [{"label": "hole", "points": points, "shape_type": kind}]),
    ):
        content = {"shapes": shapes, "imagePath": f"..\\part\\{name}.png", "imageData": None}
        (root / f"{name}.json").write_text(
            json.dumps(content | {"imageHeight": 10, "imageWidth": 20})
        )

    found = stage(root, tmp_path)

    assert found.pop("part/ground_truth/hole/1_mask.png") == pytest.approx(area, abs=4)
    assert found == {name: None for name, value in IMPORTED.items() if value is None}


def test_polygons_are_masks_of_the_defects_that_folders_name(tmp_path):
    """The folder's label stays; a mark on an image among the normal ones is a contradiction."""
    root = draw_product(tmp_path / "part", ["OK/0.png", "NG/1.png"])
    shape = {"label": "hole", "points": np.reshape(SQUARE, (4, 2)).tolist()}
    content = {"shapes": [shape], "imagePath": "1.png"}
    (root / "NG/1.json").write_text(json.dumps(content))

    assert stage(root, tmp_path)["part/ground_truth/NG/1_mask.png"] == 25
    (root / "OK/0.json").write_text(json.dumps(content | {"imagePath": "0.png"}))
    with pytest.raises(SourceError, match=r"lies among normal images, but .*0\.json marks hole"):
        fetch(root, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"segmentation": {"counts": "x", "size": [1, 1]}}, "in run lengths; export polygons"),
     ({"segmentation": [[1, 2, 3]]}, "not understood"), ({"image_id": 9}, "not understood"),
     ({"segmentation": [[1, 2]]}, "fewer than three points"),
     ({"segmentation": [[10**400, 2, 3, 4, 5, 6]]}, "too large"),
     ({"segmentation": [[1e400, 2, 3, 4, 5, 6]]}, "not understood")],
)  # fmt: skip
def test_annotations_that_are_not_understood_name_their_file(change, reason, tmp_path):
    """One line with the file, and nothing is taken as normal."""
    root = draw_product(tmp_path / "part", ["0.png"])
    one = {"image_id": 3, "category_id": 1, "segmentation": [SQUARE]} | change
    content = {"images": [{"id": 3, "file_name": "0.png"}], "annotations": [one]}
    (root / "labels.json").write_text(json.dumps(content))

    with pytest.raises(SourceError, match=f"labels.json: COCO .*{reason}"):
        fetch(root, tmp_path)


def test_annotated_sizes_are_sizes(tmp_path):
    """Two negative sides are no size, though their product is."""
    root = draw_product(tmp_path / "part", ["0.png"])
    image = {"id": 3, "file_name": "0.png", "height": -10, "width": -20}
    one = {"image_id": 3, "category_id": 1, "segmentation": [SQUARE]}
    (root / "labels.json").write_text(json.dumps({"images": [image], "annotations": [one]}))

    with pytest.raises(SourceError, match=r"labels.json: COCO .*an image of -20x-10 px"):
        fetch(root, tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"l-metadata": "x"},
        {"l-metadata": None},
        {"m-ref": "s3://b/0.png", "m-ref-metadata": "x"},
        {"m-ref": "s3://b/0.png", "m-ref-metadata": {"internal-color-map": [1]}},
        {"m-ref": "s3://b/0.png", "m-ref-metadata": {"internal-color-map": {"0": 5}}},
        {"source-ref": f"s3://b/{'a' * 5000}.png"},
        {"source-ref": f"s3://b/{'a/' * 3000}0.jpg"},
    ],
)
def test_a_damaged_manifest_of_lookout_is_one_line(more, tmp_path):
    """Values of another type, and names that no file can have, are named with the manifest."""
    root = draw_product(tmp_path / "part", ["0.png"])
    row = {"source-ref": "s3://b/0.png", "l": 1, "l-metadata": {"class-name": "hole"}} | more
    (root / "train.manifest").write_text(json.dumps(row))

    with pytest.raises(SourceError, match=r"train\.manifest: (not a table|row 1)"):
        stage(root / "train.manifest", tmp_path)


def test_a_manifest_of_lookout_is_read_beside_its_images(tmp_path):
    """Labels, kinds and masks, whose background is a colour; named alone, a folder of them is refused."""
    root = draw_product(tmp_path / "part", ["train/0.png", "train/1.png"])
    mask = Image.new("RGB", (20, 10), "white")
    mask.paste((44, 160, 44), (2, 2, 7, 7))
    mask.save(root / "1-mask.png")
    colours = {"0": {"hex-color": "#ffffff"}, "1": {"hex-color": "#2ca02c"}}
    rows = [
        {"source-ref": "s3://b/set/train/0.png", "anomaly-label": 0, "anomaly-label-metadata": {}},
        {
            "source-ref": "s3://b/set/train/1.png",
            "anomaly-label": 1,
            "anomaly-label-metadata": {"class-name": "hole"},
            "anomaly-mask-ref": "s3://b/set/1-mask.png",
            "anomaly-mask-ref-metadata": {"internal-color-map": colours},
        },
    ]
    (root / "train.manifest").write_text("\n".join(map(json.dumps, rows)))

    assert stage(root / "train.manifest", tmp_path) == IMPORTED
    with pytest.raises(
        SourceError, match=r"train\.manifest is a manifest of Lookout.*as the source"
    ):
        fetch(root, tmp_path)


def test_a_mask_of_two_images_is_nobodys(tmp_path):
    """1.jpg and 1.png may both be meant by 1_mask.png: refused at the door, no mask in the data."""
    paths = [f"part/{one}" for one in ("train/good/0.png", "test/hole/1.jpg", "test/hole/1.png",
                                       "ground_truth/hole/1_mask.png")]  # fmt: skip
    with pytest.raises(
        SourceError, match=r"1_mask\.png may be the mask of .*1\.jpg or of .*1\.png"
    ):
        arrange(paths, name="x", origin="set")

    data = draw_product(tmp_path, paths)
    found = {file.path: (file.mask, file.stray) for file in list_files(data)}
    assert not any(mask for mask, _ in found.values())
    assert "named alike" in found["part/ground_truth/hole/1_mask.png"][1]
    assert not any(
        sample.mask for sample in scan_layout(data, calibration_fraction=0, holdout_fraction=0)
    )


def test_what_lies_outside_of_the_layout_is_named(caplog):
    """No file is left out without its name."""
    arrange(["a/train/good/0.png", "a/readme.txt"], name="x", origin="set")

    assert "a/readme.txt" in caplog.text


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["a/OK/S0001/1.jpg", "a/NG/QS/S0002/2.jpg", "a/NG/QS/S0002/2.png"], "Real-IAD unpacks"),
        (["OK/nut/1.png", "NG/nut/2.png"], "category 'NG': it is a label"),
        (["nut/True/1.png", "nut/False/2.png"], "label 'False'"),
        (["NG/train/good/1.png"], "category 'NG': it is a label"),
        (
            ["p/nice good ones/1.png", "p/the bad ones/2.png"],
            "good ones and the bad ones look like labels",
        ),
        (["train/ok_front/1.png", "train/def_front/2.png"], "ok_front seems to hold normal images"),
        (["kos01/Part0.png", "kos01/Part0_label.png"], "Part0_label.png lies among normal images"),
        (["images/train/1.jpg", "labels/train/1.txt"], "1.txt seems to be annotations of YOLO"),
        (["IMAGES/1.jpg", "ANNOTATIONS/1.xml"], "1.xml seems to be annotations of Pascal VOC"),
        (
            ["ds/img/1.jpg", "ds/ann/1.jpg.json"],
            "1.jpg.json seems to be annotations of another tool",
        ),
        (["train_images/1.jpg", "train.csv"], "train.csv seems to be a table"),
        (["images/1.png", "labels/1.png"], "images beside others names no product"),
        (["nut/1.png", "masks/1.png"], "masks beside others names no product"),
        (["OK_from line 3/1.png", "Ausschuss/2.png"], "OK_from line 3 seems to hold normal images"),
        (["bottle/1.png", "bottle_NG/2.png"], "bottle_NG seems to hold defects"),
        (["Ausschuss Linie 3/1.png", "nut/2.png"], "Ausschuss Linie 3 seems to hold defects"),
        (["part/OK_1.png", "part/NG_1.png"], "NG_1.png: its name calls it defective"),
        (["NG/scratch/1.png", "NG/dent/2.png"], "category 'NG': it is a label"),
        (["nut/OK/1.png", "nut/NG/2.png", "nut/mask/3.png"], "a mask of no defective image"),
    ],
    ids=[
        "real-iad",
        "labels above products",
        "true and false",
        "label as product",
        "sentences",
        "splits of labels",
        "masks of normal images",
        "boxes of YOLO",
        "boxes of Pascal VOC",
        "annotations of Supervisely",
        "a table beside",
        "images and labels",
        "masks as product",
        "normal by hint",
        "defects beside a product",
        "scrap as product",
        "labels in file names",
        "kinds below a label",
        "a mask too many",
    ],
)
def test_layouts_that_are_not_read_say_why(files, reason, tmp_path):
    """A line names the format, the label or the category."""
    for name in files:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()

    with pytest.raises(SourceError, match=reason):
        fetch(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("paths", "targets"),
    [
        (["README.txt", "nut/OK/0.png", "nut/NG/1.png"],
         {"nut/train/good/0.png", "nut/test/NG/1.png"}),
        (["data/a.txt", "data/bolt/0.png"], {"bolt/train/good/0.png"}),
        (["nut/training/good/0.png", "nut/testing/hole/1.png"],
         {"nut/train/good/0.png", "nut/test/hole/1.png"}),
        (["nut/OK/0.png", "nut/NG/1.png", "nut/GT/1.png"],
         {"nut/train/good/0.png", "nut/test/NG/1.png", "nut/ground_truth/NG/1_mask.png"}),
        (["testing/nut/train/good/0.png", "testing/cap/train/good/0.png"],
         {"nut/train/good/0.png", "cap/train/good/0.png"}),
        (["1/nut/0.png", "1/cap/0.png"], {"nut/train/good/0.png", "cap/train/good/0.png"}),
        (["nut/intakt/0.png", "nut/kaputt/1.png"],
         {"nut/train/good/0.png", "nut/test/kaputt/1.png"}),
    ],
    ids=["a note at the top", "a note beside", "training and testing", "flat masks",
         "testing around products", "a number around products", "intakt"],
)  # fmt: skip
def test_products_are_named_by_their_images(paths, targets):
    """Neither a loose file nor a folder of a split or of masks names a product or a kind of defect."""
    placed = arrange(paths, name="set", origin="x")

    assert {place.target for place in placed if place.target.endswith(".png")} == targets


@pytest.mark.parametrize("end", ["_mask1", "_mask_1", "mask", "_defect_mask", "_mask (1)"])
def test_masks_beside_images_are_no_parts(end):
    """Numbers and words that tools put into the names of masks."""
    paths = ["nut/OK/0.png", "nut/NG/1.png", f"nut/NG/1{end}.png"]

    assert {place.target for place in arrange(paths, name="x", origin="x")} == {
        "nut/train/good/0.png", "nut/test/NG/1.png", "nut/ground_truth/NG/1_mask.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["C:\\data\\1.png", "/data/part/1.png", "1.jpg", "../other/1.PNG", "%31.png"]
)
def test_marks_of_images_that_were_moved_since_count(name, tmp_path):
    """What is marked never trains as normal because its folder or format was another."""
    root = draw_product(tmp_path / "part", ["0.png", "1.png"])
    content = {
        "images": [{"id": 7, "file_name": name}],
        "annotations": [{"image_id": 7, "category_id": 1, "segmentation": [SQUARE]}],
        "categories": [{"id": 1, "name": "hole"}],
    }
    (root / "instances.json").write_text(json.dumps(content))

    assert stage(root, tmp_path) == IMPORTED


def test_marks_of_names_with_a_percent_sign_count(tmp_path):
    """A file that is really called so is meant before the one that the name would be decoded to."""
    root = draw_product(tmp_path / "part", ["1.png", "%31.png"])
    content = {
        "images": [{"id": 7, "file_name": "%31.png"}],
        "annotations": [{"image_id": 7, "category_id": 1, "segmentation": [SQUARE]}],
        "categories": [{"id": 1, "name": "hole"}],
    }
    (root / "instances.json").write_text(json.dumps(content))

    assert "part/test/hole/%31.png" in stage(root, tmp_path)


def test_marks_without_an_outline_are_defects(tmp_path):
    """A label of a whole image, in COCO or as LabelMe's flag, makes a test image without a mask."""
    root = draw_product(tmp_path / "part", ["0.png", "1.png", "2.png"])
    content = {
        "images": [{"id": 7, "file_name": "1.png"}],
        "annotations": [{"image_id": 7, "category_id": 1, "segmentation": [], "bbox": []}],
        "categories": [{"id": 1, "name": "hole"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    flags = {"shapes": [], "imagePath": None, "flags": {"NG": True, "reviewed": True, "bad": False}}
    (root / "2.json").write_text(json.dumps(flags))

    assert list(stage(root, tmp_path)) == [
        "part/test/NG/2.png", "part/test/hole/1.png", "part/train/good/0.png"
    ]  # fmt: skip


def test_two_files_that_mark_one_image_are_united(tmp_path):
    """The polygons of both are in its mask."""
    root = draw_product(tmp_path / "part", ["0.png", "1.png"])
    for number, left in enumerate((2, 12)):
        outline = [left, 2, left + 4, 2, left + 4, 6, left, 6]
        one = {"image_id": 7, "category_id": 1, "segmentation": [outline]}
        content = {
            "images": [{"id": 7, "file_name": "1.png"}],
            "annotations": [one],
            "categories": [{"id": 1, "name": "hole"}],
        }
        (root / f"{number}-instances.json").write_text(json.dumps(content))

    assert stage(root, tmp_path)["part/ground_truth/hole/1_mask.png"] == 50


@pytest.mark.parametrize(("number", "named"), [(0, "anomaly"), (1, "normal")])
def test_a_lookout_row_that_contradicts_itself_is_refused(number, named, tmp_path):
    """Its number says normal and its class anomaly, or the other way round."""
    root = draw_product(tmp_path / "part", ["0.png"])
    row = {"source-ref": "s3://b/0.png", "reviewed": 0, "reviewed-metadata": {},
           "l": number, "l-metadata": {"class-name": named}}  # fmt: skip
    (root / "train.manifest").write_text(json.dumps(row))

    with pytest.raises(SourceError, match=rf"row 1: l is {number}, but its class is {named}"):
        stage(root / "train.manifest", tmp_path)


def test_what_folders_call_normal_is_so_beside_any_file():
    """Notes of a camera, and a table, do not matter where the folder says what its images are."""
    paths = ["nut/OK/1.png", "nut/OK/1.txt", "nut/train.csv", "cap/train/good/1.png"]

    placed = {place.path: place.target for place in arrange(paths, name="x", origin="set")}

    assert placed["nut/OK/1.png"] == "nut/train/good/1.png"
    assert placed["cap/train/good/1.png"] == "cap/train/good/1.png"


def test_visa_as_it_unpacks(tmp_path):
    """A folder with VisA's own list is read by it."""
    names = ["Images/Normal/0.JPG", "Images/Anomaly/0.JPG", "Masks/Anomaly/0.png"]
    for name in names:
        (tmp_path / "visa/candle/Data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "visa/candle/Data" / name)
    paths = [f"candle/Data/{name}" for name in names]
    (tmp_path / "visa/split_csv").mkdir()
    (tmp_path / "visa/split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\n"
        f"candle,train,normal,{paths[0]},\ncandle,test,anomaly,{paths[1]},{paths[2]}\n"
    )

    assert fetch(tmp_path / "visa", tmp_path) == [
        "candle/ground_truth/bad/0_mask.png",
        "candle/test/bad/0.JPG",
        "candle/train/good/0.JPG",
    ]


def test_a_workbook_is_named(tmp_path):
    """Excel's own file cannot be read; the line says what to do."""
    (tmp_path / "images.xlsx").write_bytes(b"PK")

    with pytest.raises(SourceError, match="save its table as CSV"):
        fetch(tmp_path / "images.xlsx", tmp_path)


@pytest.mark.parametrize("word", ["NG", "unsorted", "nul"])
def test_no_category_is_called_by_a_label(word):
    """Refused at the door, with the reason."""
    with pytest.raises(SourceError, match=f"category '{word}'|x/{word}/<image>"):
        arrange([f"{word}/train/good/0.png"], name="x", origin="set")


@pytest.mark.parametrize("case", ["mask-in-alpha", "mask-palette/black_palette", "mask-inverted"])
def test_validation_measures_masks_as_they_are_meant(case):
    """Alpha and palette count as the defect does; a mask the wrong way round is questioned."""
    root = CASES / case
    root = root if (root / "part").is_dir() else root / "set"

    rows = measure(list_files(root), Path(root), workers=1, progress=False)

    masked = [row for row in rows if row["mask"]]
    assert len(masked) == 2
    is_inverted = case == "mask-inverted"
    for row in masked:
        assert row["mask_coverage"] == pytest.approx(0.952 if is_inverted else 0.048, abs=0.01)
        assert ("the wrong way round" in str(row.get("mask_doubt"))) == is_inverted
