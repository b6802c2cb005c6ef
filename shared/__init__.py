"""What the web and worker processes both need. Imports neither of them."""
