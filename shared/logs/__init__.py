"""Log format and the removal of phone numbers from every line."""
