"""The CfC recurrence."""
