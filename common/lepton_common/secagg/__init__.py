"""SA1, secure aggregation against a malicious server: mathematics and messages, without Flower."""
