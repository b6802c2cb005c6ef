"""Celery tasks, schedule, logging of tasks, and what keeps a worker process alive."""
