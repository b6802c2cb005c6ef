"""Known problems of projects, and projects removed from the configuration."""
