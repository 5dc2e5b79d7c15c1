"""What `flows.retrain` is made of: dates, logs, workspace, gate, records, pages."""
