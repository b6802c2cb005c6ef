"""The Celery tasks and the command line: everything that talks to REDCap, Twilio's API and SMTP."""
