"""The recurrence of LQNet and CTRQNet."""
