"""The console: read-only pages about the studies and the platform, in a process of their own."""
