"""The two-coefficient probe on students whose true correction is known."""

from __future__ import annotations

import pytest
import torch

from diffcompress.evaluation import correction
from diffcompress.evaluation.correction import corrected, fit, verdict
from diffcompress.pipeline.sampling import sample
from tests.evaluation import models
from tests.evaluation.records import measured, metrics


@pytest.fixture(scope="module")
def clean():
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_scaled_and_shifted_teacher_is_mended_completely(tmp_path, clean, prediction_type):
    teacher = models.loaded(tmp_path / "t", prediction_type=prediction_type)
    student = models.loaded(tmp_path / "s", prediction_type=prediction_type, scale=0.5)
    with torch.no_grad():
        student.denoiser.conv_out.bias += 0.3
    found = fit(student, teacher, clean, {}, num_steps=4, seed=0)
    assert found.timestep.tolist() == [75, 50, 25, 0]
    assert torch.allclose(found.slope, torch.full((4, 1), 2.0, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(found.intercept, torch.full((4, 1), -0.6, dtype=torch.float64), atol=1e-4)

    def drawn(pipeline):
        return sample(pipeline, range(4), seed=1, num_steps=4)

    mended = corrected(student, found)
    assert torch.allclose(drawn(mended), drawn(teacher), atol=1e-3)
    assert not torch.allclose(drawn(student), drawn(teacher), atol=0.1)
    assert mended.fingerprint not in (student.fingerprint, teacher.fingerprint)
    assert mended.family.num_classes(mended.config) is None


def test_the_line_of_the_nearest_level_and_of_each_channel():
    line = correction.Correction(
        torch.tensor([900.0, 100.0]), torch.tensor([[2.0, 3.0], [1.0, 0.5]]), torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    )
    found = line(torch.ones(3, 2, 1, 1), torch.tensor([850, 600, 0]))
    assert found.flatten(1).tolist() == [[2, 4], [2, 4], [6, 0.5]]
    assert line.digest() != correction.Correction(line.timestep, line.slope + 1, line.intercept).digest()


@pytest.mark.parametrize(
    ("after", "reading", "share"), [(2.0, "train longer", 1.0), (7.0, "train longer", 0.5), (9.0, "both", 0.3),
                                    (11.0, "too small", 0.1), (14.0, "too small", -0.2)],
)  # fmt: skip
def test_what_the_probe_reads(after, reading, share):
    found = metrics(fd_demo=measured(12.0, 11.0, 13.0, teacher=2.0), fd_demo_corrected=measured(after))
    told = verdict(found, "demo")
    assert (told.metric, told.reading) == ("fd_demo", reading)
    assert told.explained == pytest.approx(share)
    assert told.sentence.startswith(f"fd_demo 12 becomes {after:g} when")
    assert ("nothing" in told.sentence) == (after > 12)


def test_a_student_like_its_teacher_leaves_nothing_to_explain():
    found = metrics(fd_demo=measured(2.1, 1.9, 2.3, teacher=2.0), fd_demo_corrected=measured(2.0))
    assert verdict(found, "demo").reading == "at the teacher"
    found = metrics(paired_distance=measured(0.0, 0.0, 0.0), paired_distance_corrected=measured(0.0))
    assert verdict(found, None).metric == "paired_distance"
    assert verdict(metrics(agreement=measured(0.5)), None) is None
