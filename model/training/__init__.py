"""What trains a ranker: the loop, samplers, ranks, checkpoints."""
