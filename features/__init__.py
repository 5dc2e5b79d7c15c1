"""The data contract: schemas, encodings, jagged layout and manifest. Polars, PyArrow and NumPy only."""
