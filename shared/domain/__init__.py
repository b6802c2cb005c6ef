"""What the program is about, without input or output: events, phone numbers, what a text means."""
