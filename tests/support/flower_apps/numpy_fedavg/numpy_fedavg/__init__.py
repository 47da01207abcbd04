"""Linear regression with NumPy under Flower's FedAvg."""
