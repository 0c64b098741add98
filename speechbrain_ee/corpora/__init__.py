"""Corpora: small ones, made on the spot in the layouts of the real ones."""
