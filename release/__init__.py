"""Builds what is given to sites. Not part of the package."""
