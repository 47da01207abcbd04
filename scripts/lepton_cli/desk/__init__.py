"""The desk of a site's operator: what was asked, what was spent, what left, and what is wrong."""
