"""The rest of an STU layer in Triton: norms, matrix products with their epilogues, and the layer as one function."""
