"""Phantoms: drawn images with known findings, for trying everything without patients' data."""
