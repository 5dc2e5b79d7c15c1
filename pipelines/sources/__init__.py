"""Readers and makers of raw logs, one module per kind of log."""
