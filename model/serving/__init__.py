"""What serves a trained model: bundles, quantised tables, cached scores."""
