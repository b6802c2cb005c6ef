"""What Twilio calls, how it names an incoming message, and where it shows one."""

INBOUND_PATH = "/twilio/inbound"  # a Messaging Service's or number's inbound-message webhook
EVENTS_PATH = "/twilio/events"  # an Event Streams webhook sink
# Source: Twilio docs, Event Streams, "Event types list".
INBOUND_EVENT = "com.twilio.messaging.inbound-message.received"
# Where authorised staff can read a text.
MESSAGE_PAGE = "https://www.twilio.com/console/sms/logs/{account_sid}/{message_sid}"
# `optout test-message` sends messages with such SIDs: Twilio's are hexadecimal, so none of them begins like this.
TEST_SID_PREFIX = "SMoptouttest"
# The STOP of `optout test-message --block`, which Twilio has to block; that of the other tests it never hears of.
TEST_BLOCK_PREFIX = TEST_SID_PREFIX + "block"
