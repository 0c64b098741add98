"""Inference: trained models as folders of files, loaded with an exit knob."""

from speechbrain_ee.inference.asr import EarlyExitASR, Transcript
from speechbrain_ee.inference.export import write_inference
from speechbrain_ee.inference.teacher import FrozenTeacher, load_teacher
from speechbrain_ee.inference.truncate import Truncation, truncate_model

__all__ = [
    "EarlyExitASR",
    "FrozenTeacher",
    "Transcript",
    "Truncation",
    "load_teacher",
    "truncate_model",
    "write_inference",
]
