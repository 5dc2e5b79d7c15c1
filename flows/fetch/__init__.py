"""Fetching published datasets: what there is, resumable downloads, safe unpacking."""
