"""Rows of methods, selectors, metrics and attacks that experiment files and installed packages
bring; may import attacks, methods, metrics and selectors.
"""
