import io
import tarfile

import numpy as np
import pytest
import torch

from advfast.data import load

LAYOUTS = {
    "cifar10": (
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        {**{f"data_batch_{i}.bin": 4 for i in range(1, 6)}, "test_batch.bin": 3},
        [10],
    ),
    "cifar100": (
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        {"train.bin": 7, "test.bin": 3},
        [20, 100],
    ),
}


@pytest.fixture(params=LAYOUTS)
def name(request, monkeypatch):
    monkeypatch.delenv("ADVFAST_DATA", raising=False)
    return request.param


@pytest.fixture
def files(name):
    """File name -> records [N, label bytes + 3072]."""
    random = np.random.default_rng(0)
    made = {}
    for file, count in LAYOUTS[name][2].items():
        labels = [random.integers(0, classes, (count, 1)) for classes in LAYOUTS[name][3]]
        pixels = random.integers(0, 256, (count, 3072))
        made[file] = np.concatenate([*labels, pixels], axis=1).astype(np.uint8)
    return made


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, records in files.items():
        content = records if isinstance(records, bytes) else records.tobytes()
        (folder / file).write_bytes(content)
    return folder


def pack(path, subfolder, files):
    with tarfile.open(path, "w:gz") as archive:
        for file, records in files.items():
            content = records if isinstance(records, bytes) else records.tobytes()
            entry = tarfile.TarInfo(f"{subfolder}/{file}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def check(splits, files, name):
    label_bytes = len(LAYOUTS[name][3])
    parts = {
        "train": [records for file, records in files.items() if "test" not in file],
        "test": [records for file, records in files.items() if "test" in file],
    }
    for part, records in parts.items():
        records = np.concatenate(records)
        source = getattr(splits, part)
        assert source.images.dtype == torch.uint8
        assert source.labels.tolist() == records[:, label_bytes - 1].tolist()
        for image, record in zip(source.images.numpy(), records, strict=True):
            red, green, blue = record[label_bytes:].reshape(3, 1024)
            assert (image[0].ravel() == red).all()
            assert (image[1].ravel() == green).all()
            assert (image[2].ravel() == blue).all()


def test_folders_and_archive(name, files, tmp_path, monkeypatch):
    subfolder, archive = LAYOUTS[name][:2]
    write(tmp_path / "direct", files)
    write(tmp_path / "above" / subfolder, files)
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "packed" / archive, subfolder, files)
    for root in ("direct", "above", "packed"):
        splits = load(name, tmp_path / root)
        assert splits.name == name
        check(splits, files, name)
    monkeypatch.setenv("ADVFAST_DATA", str(tmp_path / "above"))
    check(load(name.upper()), files, name)


def test_class_names(name, files, tmp_path):
    names_file = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}[name]
    count = LAYOUTS[name][3][-1]
    write(tmp_path, files)
    built_in = load(name, tmp_path).class_names
    assert built_in is None if name == "cifar100" else built_in[3] == "cat"
    lines = "".join(f"class {i}\n" for i in range(count)) + "\n"
    (tmp_path / names_file).write_text(lines)
    assert load(name, tmp_path).class_names == tuple(f"class {i}" for i in range(count))
    (tmp_path / names_file).write_text("one\n")
    with pytest.raises(ValueError, match=f"must name {count} classes, got 1"):
        load(name, tmp_path)


def test_truncated_records(name, files, tmp_path):
    file = list(files)[1]
    for content in (files[file].tobytes()[:-1], b""):
        write(tmp_path, {**files, file: content})
        with pytest.raises(ValueError, match=rf"{file} is truncated.*records of 307[34] bytes"):
            load(name, tmp_path)


def test_label_out_of_range(name, files, tmp_path):
    file = next(iter(files))
    for byte, classes in enumerate(LAYOUTS[name][3]):
        records = files[file].copy()
        records[2, byte] = classes
        write(tmp_path, {**files, file: records})
        message = rf"{file}: label byte {byte + 1} must be 0 \.\. {classes - 1}, got {classes}"
        with pytest.raises(ValueError, match=message):
            load(name, tmp_path)


def test_missing_files(name, files, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"CIFAR-10.* was not found.*binary\.tar\.gz.*ADVFAST_DATA"
    ):
        load(name, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="ADVFAST_DATA"):
        load(name)
    first = next(iter(files))
    write(tmp_path, {file: records for file, records in files.items() if file != first})
    with pytest.raises(FileNotFoundError, match=f"has no {first}"):
        load(name, tmp_path)


def test_truncated_or_incomplete_archive(name, files, tmp_path):
    subfolder, archive = LAYOUTS[name][:2]
    path = pack(tmp_path / archive, subfolder, files)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 40, 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"not a whole \.tar\.gz"):
            load(name, tmp_path)
    first = next(iter(files))
    pack(path, subfolder, {file: records for file, records in files.items() if file != first})
    with pytest.raises(FileNotFoundError, match=f"has no {first}"):
        load(name, tmp_path)
