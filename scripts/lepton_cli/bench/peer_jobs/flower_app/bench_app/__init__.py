"""A plain FedAvg app of Flower's, whose training is trivial."""
