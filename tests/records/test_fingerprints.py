"""Fingerprints name banks, caches and runs on disk: a value that changed would begin them all anew."""

import hashlib
import json
from pathlib import Path

import torch

from diffcompress.records import fingerprints


def test_a_value_has_the_hash_of_its_json(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, (3,)], "a": "ä"}
    text = json.dumps({"a": "ä", "b": [1, 2.5, None, [3]]})
    assert fingerprints.of_json(value) == hashlib.sha256(text.encode()).hexdigest()
    assert fingerprints.of_json({"at": tmp_path}) == fingerprints.of_json({"at": str(tmp_path)})


def test_tensors_count_by_name_and_bytes_of_any_dtype() -> None:
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.tensor(1.5, dtype=torch.bfloat16), "c": torch.empty(0)}
    told = b"a" + tensors["a"].contiguous().numpy().tobytes() + b"b" + b"\xc0\x3f" + b"c"
    assert fingerprints.of_tensors(tensors) == hashlib.sha256(told).hexdigest()


def test_a_model_is_hashed_with_its_config_and_its_files_on_the_way(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file, size in zip(files, (3 << 20, 7), strict=True):
        file.write_bytes(bytes(range(256)) * (size // 256) + b"end")
    whole = hashlib.sha256(b'{"a": 1}' + b"".join(file.read_bytes() for file in files)).hexdigest()
    assert fingerprints.of_model({"a": 1}, files) == whole
    for file in files:
        assert fingerprints.of_model_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert fingerprints.of_model({"a": 2}, files) != whole
    files[1].write_bytes(b"changed, and of another size")
    assert fingerprints.of_model({"a": 1}, files) != whole
    assert fingerprints.of_model_file(files[1]) == hashlib.sha256(files[1].read_bytes()).hexdigest()
