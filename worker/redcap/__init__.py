"""REDCap: API client, gateway of a project, rate limit and circuit breaker, phone index."""
