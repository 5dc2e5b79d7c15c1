"""The stages ingest, vocab, streams and validate, on the threads of one machine or on any Beam runner."""
