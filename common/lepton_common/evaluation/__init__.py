"""How good a model is: statistics that add up over records and sites, and metrics from them."""
