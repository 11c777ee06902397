"""What a run leaves behind: written atomically, read lazily, analysed in polars. Needs neither
torch nor Ray.
"""
