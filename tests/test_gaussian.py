"""Gaussian processes: conditioning on what was seen, many priors side by side."""

import numpy as np
import pytest

from tapfinger_hpc import gaussian


def test_conditioning_is_that_of_the_joint_normal_distribution():
    draw = np.random.default_rng(0)
    root = draw.normal(size=(5, 5))
    joint = root @ root.T + 0.1 * np.eye(5)
    rest = draw.normal(size=3)
    seen = gaussian.known(joint[:3, :3], rest)
    mean, variance = gaussian.predicted(seen, joint[:3, 3:], np.diag(joint)[3:])
    gains = joint[3:, :3] @ np.linalg.inv(joint[:3, :3])
    assert mean == pytest.approx(gains @ rest)
    assert variance == pytest.approx(np.diag(joint[3:, 3:] - gains @ joint[:3, 3:]))
    density = -0.5 * rest @ np.linalg.inv(joint[:3, :3]) @ rest - 0.5 * np.linalg.slogdet(joint[:3, :3])[1]
    assert gaussian.log_evidence(seen) == pytest.approx(density)


def test_priors_side_by_side_are_as_one_by_one():
    points, asked = np.array([0.0, 1.0, 2.5]), np.array([0.5, 4.0])
    lengths, rest = np.array([0.5, 2.0]), np.array([0.3, -0.1, 0.4])
    noise = 0.1 * np.eye(3)
    together = gaussian.known(gaussian.alike(points, points, lengths) + noise, np.stack((rest, rest)))
    means, variances = gaussian.predicted(together, gaussian.alike(points, asked, lengths), np.ones((2, 2)))
    for number, length in enumerate(lengths):
        alone = gaussian.known(gaussian.alike(points, points, length) + noise, rest)
        mean, variance = gaussian.predicted(alone, gaussian.alike(points, asked, length), np.ones(2))
        assert means[number] == pytest.approx(mean)
        assert variances[number] == pytest.approx(variance)


def test_far_from_all_points_the_prior_is_believed():
    seen = gaussian.known(gaussian.alike(np.zeros(1), np.zeros(1), 1.0) + 0.01, np.array([3.0]))
    mean, variance = gaussian.predicted(seen, gaussian.alike(np.zeros(1), np.array([50.0]), 1.0), np.ones(1))
    assert mean == pytest.approx(0, abs=1e-6)
    assert variance == pytest.approx(1)
