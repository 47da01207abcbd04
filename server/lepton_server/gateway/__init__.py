"""A coordinator on a network: one command over a SuperLink, a proxy and our own parts."""
