"""Twilio's REST API: client, account view, message log, setup."""
