"""Techniques that train: one file each."""
