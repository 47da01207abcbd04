"""An app in Flower's older form: client_fn, NumPyClient and server_fn."""
