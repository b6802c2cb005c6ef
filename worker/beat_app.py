"""The Celery application of beat and Flower: they run no task, so no task's code is loaded.

Neither needs a secret: Flower needs only the broker's address, beat the times in the configuration.
"""

from worker.runtime.application import make_application

app = make_application()
