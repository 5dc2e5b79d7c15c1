"""Reader, model, metrics and the stages train and evaluate."""
