"""Beam pipelines and the stages ingest, vocab, streams and validate."""
