"""Statistics of a run: frames in, frames out. May import storage;
no torch, no Ray, no rendering.
"""
