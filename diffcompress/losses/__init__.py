"""Losses between a student's and a teacher's denoiser outputs. Imports nothing else of diffcompress."""

from .combine import combine
from .diffusion import diffusion
from .feature_kd import Adapters, feature_kd, last_of_each_resolution, relative_feature_kd
from .lift import lift
from .output_kd import output_kd
from .place import place
from .terms import LossTerms
from .variance_kd import variance_kd

__all__ = [
    "Adapters",
    "LossTerms",
    "combine",
    "diffusion",
    "feature_kd",
    "last_of_each_resolution",
    "lift",
    "output_kd",
    "place",
    "relative_feature_kd",
    "variance_kd",
]
