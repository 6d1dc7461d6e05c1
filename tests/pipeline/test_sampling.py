"""Samples against a walk by hand: diffusers' own scheduler, and guidance from its equation."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler

from diffcompress.pipeline.load import load
from diffcompress.pipeline.sampling import conditioning_for, sample
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.jobs.tiny_teacher import save_teacher


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """Class-conditional, with a null class and a learned variance."""
    return load(resolve(str(tiny.save_dit(tmp_path_factory.mktemp("dit")))))


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return load(resolve(str(save_teacher(tmp_path_factory.mktemp("unet") / "teacher", num_classes=3))))


def recorded(pipeline, indices, **options):
    """Samples, and every denoiser call on the way."""
    calls = []
    return sample(pipeline, indices, record=lambda *call: calls.append(call), **options), calls


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_leads_away_from_the_null_prediction(dit, guidance):
    """Ho and Salimans 2022: null + guidance * (conditional - null), here with diffusers' DDIM."""
    found, calls = recorded(dit, [0, 1, 2], seed=4, num_steps=5, guidance=guidance)
    noisy, labels = calls[0][0], conditioning_for(dit, [0, 1, 2], 4)["class_labels"]
    nothing = torch.full_like(labels, dit.conditions.null)
    assert (labels != nothing).all()
    scheduler = DDIMScheduler.from_config(dit.reference.scheduler, set_alpha_to_one=True)
    scheduler.set_timesteps(5)
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            ours, null = (dit.denoiser(noisy, timestep.expand(3), which).sample[:, :2] for which in (labels, nothing))
        noisy = scheduler.step(null + guidance * (ours - null), timestep, noisy).prev_sample
    torch.testing.assert_close(found, noisy, rtol=1e-4, atol=1e-4)


def test_every_call_is_recorded_with_its_condition_and_learned_variance(dit):
    rows = torch.tensor([3, 1])
    _, calls = recorded(dit, [5, 6], seed=0, num_steps=3, guidance=2.0, conditions=rows)
    assert [call[3].tolist() for call in calls] == [[3, 1], [5, 5]] * 3
    assert all(torch.equal(calls[i][0], calls[i + 1][0]) for i in (0, 2, 4))
    for noisy, timestep, prediction, index in calls:
        expected = dit.predict_all(noisy, timestep, dit.conditions.rows(index))
        assert expected.shape[1] == 4
        torch.testing.assert_close(prediction, expected)


def test_guidance_does_nothing_where_there_is_no_null_conditioning(unet):
    plain, guided = (sample(unet, [0, 1], seed=0, num_steps=3, guidance=scale) for scale in (1.0, 4.0))
    assert torch.equal(plain, guided)


@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "jitter": True}])
def test_a_sample_follows_from_its_seed_and_number_alone(unet, options):
    several = sample(unet, [3, 0, 7], seed=2, num_steps=4, **options)
    alone = torch.cat([sample(unet, [i], seed=2, num_steps=4, **options) for i in (3, 0, 7)])
    torch.testing.assert_close(several, alone, rtol=1e-4, atol=1e-4)
    assert len({tuple(image.flatten().tolist()) for image in several}) == 3
    assert not torch.allclose(several, sample(unet, [3, 0, 7], seed=3, num_steps=4, **options))


def test_jitter_moves_each_samples_timesteps_and_noise_makes_samples_differ(unet):
    _, straight = recorded(unet, range(4), seed=0, num_steps=5)
    _, moved = recorded(unet, range(4), seed=0, num_steps=5, jitter=True)
    assert all((call[1] == call[1][0]).all() for call in straight)
    assert len(torch.stack([call[1] for call in moved], 1).unique(dim=0)) > 1
    assert torch.equal(straight[0][0], moved[0][0])  # the start is the same noise
    still, ancestral = (sample(unet, [0], seed=0, num_steps=5, eta=eta) for eta in (0.0, 1.0))
    assert not torch.allclose(still, ancestral)


def test_every_ancestral_step_has_normal_noise_of_its_own(unet):
    """What is left of a step without it, by its standard deviation; the last step has none."""
    found, calls = recorded(unet, range(32), seed=0, num_steps=4, eta=1.0)
    seen, process = [], unet.noise
    for (noisy, timestep, prediction, _), (following, later, _, _) in itertools.pairwise(calls):
        ours, ones = torch.zeros_like(noisy), torch.ones_like(noisy)
        expected = process.step(prediction, noisy, timestep, later, 1.0, ours)
        deviation = process.step(prediction, noisy, timestep, later, 1.0, ones) - expected
        seen.append(((following - expected) / deviation).flatten())
    assert len(seen) == 3
    assert all(abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1 for noise in seen)
    assert torch.corrcoef(torch.stack(seen)).fill_diagonal_(0).abs().max() < 0.15
    noisy, timestep, prediction, _ = calls[-1]
    last = process.step(prediction, noisy, timestep, torch.full_like(timestep, -1), 1.0, torch.zeros_like(noisy))
    torch.testing.assert_close(found, last)
