"""Third-party Flower apps, run as they are, outside the door."""
