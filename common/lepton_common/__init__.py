"""What server and sites must agree on: errors, settings, messages, privacy, catalogs."""
