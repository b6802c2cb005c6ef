"""How each project stands: what waits, what was written by day, the nights that were proved, the daily check.

Most of it is for `/metrics`, the console and e-mails.
"""
