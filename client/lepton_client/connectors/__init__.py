"""Where a site's own records come from: tables in files and databases, by its site file."""
