"""No call of the teacher that a bank costs is thrown away: what memory does not hold stays on disk, and is the same."""

import json
import shutil
from collections import namedtuple

import pytest
import torch

from diffcompress.bank import bank as banks
from diffcompress.bank import keeping
from diffcompress.bank.keeping import LEAST_RATIO, Kept, call_bytes
from diffcompress.bank.targets import Targets
from diffcompress.errors import UsageError
from diffcompress.pipeline.load import load
from diffcompress.pipeline.stored_rows import StoredRows
from diffcompress.recipe import BankSection, TargetsSection
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve
from tests.jobs.tiny_teacher import save_teacher

SECTION = BankSection(num_samples=20, sampler_steps=4)
SHAPE = (1, 8, 8)
ONE = call_bytes(SHAPE, half=True)
Disk = namedtuple("Disk", ["free"])


@pytest.fixture(scope="module")
def runtime():
    return start("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load(resolve(str(save_teacher(tmp_path_factory.mktemp("teacher") / "teacher", num_classes=3))))


@pytest.fixture
def small(monkeypatch):
    """Memory for two of four calls of each sample, and files of eight samples."""
    monkeypatch.setattr(keeping, "TRAJECTORY_BYTES", 2 * 20 * call_bytes(SHAPE))
    monkeypatch.setattr(keeping, "SHARD_BYTES", 8 * 4 * ONE)


def fill(folder, teacher, runtime, section=SECTION):
    return banks.fill(folder, teacher, section, 0, None, runtime, Progress())


def every(bank):
    return bank.calls(torch.arange(bank.num_trajectory))


def source(folder, teacher, bank, runtime, **changes):
    section = TargetsSection(reuse=2, pool_size=16)
    values = {"seed": 0, "batch_size": 8, "num_steps": 40, "runtime": runtime, "progress": Progress()}
    return Targets(folder, teacher, bank, section, **values | changes)


def files(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_memory_does_not_hold_stays_on_disk_in_half_precision(teacher, runtime, tmp_path, monkeypatch):
    whole = fill(tmp_path / "memory", teacher, runtime)
    monkeypatch.setattr(keeping, "TRAJECTORY_BYTES", 2 * 20 * call_bytes(SHAPE))
    former = fill(tmp_path / "former", teacher, runtime, SECTION.model_copy(update={"stored_gib": 0.0}))
    bank = fill(tmp_path / "disk", teacher, runtime)
    assert (whole.num_trajectory, former.num_trajectory, bank.num_trajectory) == (80, 40, 80)
    assert bank.key == whole.key == former.key
    assert isinstance(bank.trajectory["prediction"], StoredRows) and isinstance(whole.trajectory["noisy"], torch.Tensor)
    assert torch.equal(bank.clean, whole.clean) and torch.equal(bank.condition, whole.condition)
    for name, value in every(whole).items():
        torch.testing.assert_close(every(bank)[name], value, rtol=2**-10, atol=1e-6)
        assert every(bank)[name].dtype == value.dtype
    assert "calls" not in json.loads((tmp_path / "memory" / "bank.json").read_text())
    assert "calls" not in json.loads((tmp_path / "former" / "bank.json").read_text())


def test_no_prediction_is_bought_while_a_stored_one_is_unused(teacher, runtime, tmp_path, small):
    bank = fill(tmp_path / "bank", teacher, runtime)
    asked = []
    hook = teacher.denoiser.register_forward_hook(lambda module, given, output: asked.append(len(given[0])))
    targets = source(tmp_path / "targets", teacher, bank, runtime, num_steps=20)  # 160 uses of 80 calls
    batches = [targets.batch(step) for step in range(20)]
    hook.remove()
    assert not asked
    seen = torch.cat([batch.prediction.flatten(1) for batch in batches])
    assert seen.dtype == torch.float32 and len(seen.unique(dim=0)) == 80
    batch = batches[3]
    with torch.no_grad():
        wanted = teacher.predict(batch.noisy, batch.timestep, batch.conditioning)
    torch.testing.assert_close(batch.prediction, wanted, rtol=1e-2, atol=2e-3)


def test_a_bank_goes_on_as_it_was_begun_whatever_the_disk_holds_by_now(teacher, runtime, tmp_path, small, monkeypatch):
    folder = tmp_path / "bank"
    fill(folder, teacher, runtime)
    first = files(folder)
    assert [name for name in first if "safetensors" in name] and len(first) == 1 + 3  # 20 samples, eight in a file
    next(folder.glob("*1.safetensors")).unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(0))
    assert fill(folder, teacher, runtime).num_trajectory == 80
    assert files(folder) == first
    (folder / "bank.json").write_text("{")  # its shards tell what they are
    assert fill(folder, teacher, runtime).num_trajectory == 80
    assert files(folder) == first
    elsewhere = fill(tmp_path / "full", teacher, runtime)
    assert (elsewhere.num_trajectory, elsewhere.kept.half) == (40, False)


def test_a_bank_of_an_earlier_version_goes_on_in_memory(teacher, runtime, tmp_path, monkeypatch):
    folder = tmp_path / "bank"
    monkeypatch.setattr(keeping, "TRAJECTORY_BYTES", 2 * 20 * call_bytes(SHAPE))
    fill(folder, teacher, runtime, SECTION.model_copy(update={"stored_gib": 0.0}))
    first = files(folder)
    bank = fill(folder, teacher, runtime)
    assert (bank.num_trajectory, files(folder)) == (40, first)
    (folder / "bank.json").unlink()
    assert fill(folder, teacher, runtime).num_trajectory == 40 and files(folder) == first


@pytest.mark.parametrize(
    ("gib", "free", "positions", "half"),
    [
        (1.0, 2**40, 4, True),
        (3 * 20 * ONE / 2**30, 2**40, 3, True),  # the recipe's bound
        (1.0, 2 * 3 * 20 * ONE, 3, True),  # half of what is free
        (2 * 20 * ONE / 2**30, 2**40, 2, False),  # no more than memory holds
        (0.0, 2**40, 2, False),
    ],
)
def test_disk_and_recipe_bound_it(tmp_path, monkeypatch, small, gib, free, positions, half):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(free))
    section = SECTION.model_copy(update={"stored_gib": gib})
    kept = Kept.of(SHAPE, section, tmp_path / "not" / "there")
    assert (kept.positions, kept.half) == (positions, half)
    assert Kept.told(kept.key("abc"), SHAPE, section) == kept


def test_files_are_few_and_no_larger_than_a_process_holds():
    section = BankSection(num_samples=2048, sampler_steps=50, stored_gib=1e6)
    video = (16, 21, 60, 104)
    kept = Kept.of(video, section, keeping.Path("/"))
    assert not kept.half or -(-2048 // kept.shard_size) <= keeping.MOST_SHARDS
    still = Kept.of((16, 128, 128), section.model_copy(update={"sampler_steps": 25}), keeping.Path("/"))
    assert still.shard_size * still.positions * call_bytes((16, 128, 128), half=True) <= keeping.SHARD_BYTES


def test_it_grows_on_disk(teacher, runtime, tmp_path, small):
    bank = fill(tmp_path, teacher, runtime)
    grow = lambda calls: banks.grown(bank, tmp_path, calls, 0.02, teacher, SECTION, 0, runtime, Progress())  # noqa: E731
    more = grow(100)
    assert (more.num_samples, more.num_trajectory) == (28, 112)
    assert isinstance(more.trajectory["noisy"], StoredRows)
    for name, value in every(bank).items():
        assert torch.equal(every(more)[name][:80], value)
    again = grow(110)
    assert all(torch.equal(every(again)[name], value) for name, value in every(more).items())
    batches = [source(tmp_path / "targets", teacher, one, runtime).batch(30) for one in (more, again)]
    assert torch.equal(batches[0].prediction, batches[1].prediction)


def test_dear_samples_are_drawn_for_large_students():
    """With guidance a stored call costs two; where not all of a sample's calls stay, more still."""
    section, shape = BankSection(num_samples=512), (4, 64, 64)
    whole, some = Kept(25, True, 128, 1 << 40), Kept(5, True, 128, 1 << 40)
    for kept, per_step in ((whole, 2), (some, 1), (some, 2)):
        grown = [
            kept.growth(25 * 512 + more, LEAST_RATIO, shape, section, per_step) for more in (0, 1, 128 * 25, 10**5)
        ]
        assert grown == [0, 128, 128, 32 * 128]
        assert kept.growth(10**9, LEAST_RATIO / 2, shape, section, per_step) == 0
    assert whole.growth(25 * 512 + 1, 0.01, shape, section, 1) == 128
    most = call_bytes(shape, half=True) * 5 * (512 + 300)
    assert Kept(5, True, 128, most).growth(10**9, 0.25, shape, section, 2) == 256  # what the bytes hold


def test_what_half_precision_cannot_hold_is_told(teacher, runtime, tmp_path, small):
    loud = load(teacher.reference)
    with torch.no_grad():
        loud.denoiser.conv_out.bias.fill_(1e5)
    with pytest.raises(UsageError, match="the teacher predicts NaN or infinite values, or some above 65504"):
        fill(tmp_path, loud, runtime)
