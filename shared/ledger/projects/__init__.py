"""How each project stands: whether it is configured, its problem, what waits, reconciliations, the daily check.

Most of it is for `/metrics`, the console and e-mails.
"""
