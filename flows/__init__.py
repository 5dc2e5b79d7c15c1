"""Prefect flows, the `hstu2` command and the report."""
