"""Statistics of a run, frames in and frames out, without torch, Ray or rendering; may import
storage.
"""
