"""What `optout check` looks at: one module per neighbour, and the findings as data. Nothing is written."""
