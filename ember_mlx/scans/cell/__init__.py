"""The recurrence of any cell (ember_mlx.Cell): one scan, made from the graph of its step."""
