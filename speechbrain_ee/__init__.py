"""Dynamic-depth speech models for SpeechBrain: early exits and what they need.

An encoder is a stack of layers; this package decides, for each utterance, which
layers run and what is read out of them.
"""

__version__ = "0.1.0"
