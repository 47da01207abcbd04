"""Tasks by name: what is learnt from which data, by which loss, judged by which metrics."""
