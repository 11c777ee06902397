"""A run on disk or under a URL: Parquet, locks, leases, sync and caches; may import no other
package.
"""
