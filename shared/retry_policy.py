"""Every pause, deadline and give-up time of the program, in one table.

A pause lies between two tries. A deadline ends one try. A give-up time ends all tries, and somebody is notified.
Not here: how long data is kept, and how often a process reads its configuration (`shared/config/live.py`).
"""

from datetime import timedelta

# --- due work: sweep publishes again what nobody has finished -----------------------------------------------------
SWEEP_EVERY_SECONDS = 60.0
# Quick retries that become due within this time share one sweep, at its end.
SWEEP_SLOT_SECONDS = 2
# First after a minute, then at doubling pauses. The longest also bounds how long a recovery of REDCap goes unnoticed.
FIRST_PAUSE_MS = 60_000
LONGEST_PAUSE_MS = 300_000
# What failed is tried again sooner a few times, for what passes within a minute.
QUICK_PAUSES_SECONDS = (5.0, 15.0, 30.0)
# For how long a lookup in the queue is believed to be there: what comes after that sends another.
LOOKUP_WAITS_MS = 5_000

# --- give-up times ------------------------------------------------------------------------------------------------
# After an outage of this length the event ends as failed and the team is notified. The reconciliation still fixes the
# record when REDCap is available again.
GIVE_UP_LOOKUPS_AFTER = timedelta(days=1)
# A block at Twilio that could not be requested for so long ends as failed; the nightly reconciliation tries again.
GIVE_UP_BLOCKS_AFTER = timedelta(days=1)
# A mail that the server has deferred for longer than this is abandoned.
GIVE_UP_MAILS_AFTER = timedelta(days=7)
# A project that was removed from the configuration may come back for as long as an outage of REDCap is waited for.
GRACE_PERIOD = timedelta(days=1)

# --- one process at a time ----------------------------------------------------------------------------------------
# How long a killed holder of a lock keeps the others waiting.
LOCK_LEASE_SECONDS = 20.0
# How long a command waits for a worker that is updating the project, and how long the reconciliation does.
COMMAND_WAITS_SECONDS = 30.0
RECONCILE_WAITS_SECONDS = 600.0

# --- tasks --------------------------------------------------------------------------------------------------------
# A message of a dead worker is delivered again after this long: longer than the longest task (reconcile) and than
# every countdown, which would otherwise be delivered twice. The shortest timeout of all processes that share a broker
# applies, so both sides use this constant.
# Source: Celery docs, "Using Redis", visibility timeout.
VISIBILITY_TIMEOUT_SECONDS = 3600
LONGEST_TASK_SECONDS = 3000
# All other tasks: a lookup may build the index of a large project, at worst by two exports of five minutes.
STEP_SECONDS = 960
# Heartbeats arrive every two seconds. Without one for this long, the broker is unavailable (then a restart is
# harmless: the new process waits for the broker), or Celery's main loop has ended while its process is alive.
WATCHDOG_TIMEOUT_SECONDS = 300.0

# --- background jobs ----------------------------------------------------------------------------------------------
# A job whose message was lost, or whose worker was killed before it began, is published again after this long.
JOB_PUBLISHED_FOR_MS = 60_000
# A job that REDCap did not let end is tried again after this long.
JOB_RETRY_AFTER = timedelta(minutes=1)
# A refresh may show an opt-out that a further record lacks: it goes before nightly runs that were asked for earlier.
REFRESH_AHEAD_MS = 3600 * 1000
# How long texts gather for one export, where another project knows the number.
GATHER_FOR = timedelta(seconds=59)
# A lookup that the background has not done by then is done at once.
BACKGROUND_LOOKUP_WITHIN = timedelta(minutes=15)
# After a round of updates, another record may hold the phone by now: check, but not more often than this in a storm.
REFRESH_PAUSE = timedelta(seconds=10)

# --- reconciliation, checks and reports ---------------------------------------------------------------------------
# A reconciliation that failed is run again.
RECONCILE_AGAIN_MS = 3600 * 1000
# Two beats by mistake publish two runs: the second finds that one has just ended.
RECONCILE_JUST_RAN = timedelta(minutes=10)
# The team is notified of failed reconciliations once a day.
FAILURE_MAIL_EVERY_MS = 20 * 3600 * 1000
# A project is checked by each nightly run; for how long it may stay unchecked where these fail.
VERIFY_EVERY_MS = 26 * 3600 * 1000
# Someone who has just added a project runs `optout check`; the first daily check is for what they have not seen.
FIRST_CHECK_AFTER_MS = 15 * 60_000
# After an error, so that its end shows soon; also if the message or its worker was lost.
CHECK_AGAIN_AFTER_MS = 3600_000
# Checks are requested no more often than this.
CHECKS_EVERY_SECONDS = 50
CHECK_TIMEOUT_SECONDS = 300.0
SUMMARY_AGAIN_SECONDS = 900
# A fault of the platform that is shorter than this is a restart, or one that retries heal.
FAULT_LASTS_MS = 5 * 60 * 1000
OPERATOR_MAIL_EVERY_SECONDS = 300
# What the daily check finds in many studies after another becomes one e-mail an hour.
FINDINGS_MAIL_EVERY_SECONDS = 3600
PING_EVERY_SECONDS = 50
PING_TIMEOUT_SECONDS = 5

# --- Redis --------------------------------------------------------------------------------------------------------
# A webhook must be answered well within Twilio's 15 s (5 s for Event Streams) even when Redis hangs.
SOCKET_TIMEOUT_SECONDS = 2.0
# Three sentinels that hang, one after the other, must not take longer than a webhook may.
SENTINEL_TIMEOUT_SECONDS = 0.5
REPLICA_TIMEOUT_MS = 1_000

# --- web ----------------------------------------------------------------------------------------------------------
# Twilio sends the body at once; it gives up after 15 s, Event Streams after 5 s.
BODY_SECONDS = 5.0
# A webhook or an event that Redis has not stored until then receives a 503.
STORE_SECONDS = 4.0
# `optout check` asks web for its state.
WEB_TIMEOUT_SECONDS = 10.0

# --- REDCap -------------------------------------------------------------------------------------------------------
REDCAP_CONNECT_TIMEOUT_SECONDS = 5.0
REDCAP_READ_TIMEOUT_SECONDS = 60.0
# REDCap prepares an export of all records, perhaps 100,000, in memory before it sends the first byte.
REDCAP_EXPORT_TIMEOUT_SECONDS = 300.0
# The circuit breaker's pause after each consecutive failure; the last value applies to all further failures.
REDCAP_BACKOFF_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
# REDCap bans an address until an administrator lifts the ban; further requests would not help.
REDCAP_BACKOFF_AFTER_BAN_SECONDS = 300.0
# Consecutive failures are counted from zero again after this long without one.
REDCAP_FORGET_FAILURES_SECONDS = 3600
# A worker that waits for the request budget checks it again after this long at the latest.
REDCAP_LONGEST_SLEEP_SECONDS = 5.0

# --- Twilio -------------------------------------------------------------------------------------------------------
TWILIO_TIMEOUT_SECONDS = 30.0  # twilio-python has none by default

# --- mail ---------------------------------------------------------------------------------------------------------
SMTP_TIMEOUT_SECONDS = 30.0
# A server that sends a few bytes now and then never exceeds that: a dialogue ends after this long.
SMTP_DIALOGUE_SECONDS = 180.0
# A server may scan the content before it accepts it; a mail whose acceptance came too late is sent again.
SMTP_CONTENT_TIMEOUT_SECONDS = 60.0
# A failure that took longer occupied a process: the server hung. A refused connection does not.
MAIL_SERVER_SLOW_SECONDS = 5.0
# The pause after each consecutive hang; the last value applies to all further ones.
MAIL_SERVER_PAUSES_SECONDS = (20, 60, 120, 300)
MAIL_SERVER_FORGET_HANGS_SECONDS = 86_400
# One process tries whether the server answers again: longer than any dialogue.
MAIL_SERVER_PROBE_SECONDS = 240
# A process waits for another one's mail for at most this long.
MAIL_SERVER_WAIT_SECONDS = 5.0
# The pause after each consecutive refused login; the last value applies to all further ones.
MAIL_LOGIN_PAUSES_SECONDS = (60, 60, 60, 60, 60, 300)
# Refusals are counted from zero again after this long without one.
MAIL_LOGIN_FORGET_REFUSALS_SECONDS = 86_400
# For this long after a login others may log in at the same time; before, they wait for its result.
MAIL_LOGIN_TRUST_SECONDS = 60
# How long a process waits for another one's login before it defers its mail.
MAIL_LOGIN_WAIT_SECONDS = 5.0
OAUTH2_TIMEOUT_SECONDS = 15.0
# A token is renewed this long before it expires.
OAUTH2_LEEWAY_SECONDS = 120
