"""The common form of errors about arguments."""


def bad_argument(owner: str, name: str, expected: str, got: object, kind: type[Exception] = ValueError) -> Exception:
    """Return the exception to raise for argument `name` of `owner`.

    Example:
        >>> from ember_mlx.errors import bad_argument
        >>> print(bad_argument("LTC", "time_deltas", "have shape (B, T) = (4, 25)", (25,)))
        [LTC] time_deltas must have shape (B, T) = (4, 25), got (25,).
    """
    return kind(f"[{owner}] {name} must {expected}, got {got}.")
