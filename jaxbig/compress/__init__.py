"""Techniques that make models smaller: one file each."""
