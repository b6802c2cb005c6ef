"""The steps of the pipeline as plain functions that know no Celery. A step's file is named like its task."""
