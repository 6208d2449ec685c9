"""The LTC recurrence."""
