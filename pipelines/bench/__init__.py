"""Parts of the benchmark of the data plane, `python -m pipelines.bench_data`."""
