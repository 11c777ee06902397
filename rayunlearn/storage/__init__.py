"""A run on disk or under a URL: Parquet, locks, leases, sync. May import schema, config and errors
alone.
"""
