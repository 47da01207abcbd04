"""Simulated sites that share a process: trained at once, each by the rules it would keep alone."""
