"""Celery's settings, publishing tasks, and recording opt-out events."""
