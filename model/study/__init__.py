"""The scaling study: grids of models, their figures and pages."""
