"""What has to be done: `due_work` has each piece until it is done, and publishes it again at growing pauses."""
