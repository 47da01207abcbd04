"""Who a site is: its long-term signing key."""
