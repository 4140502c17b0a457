"""The one exception for a user's mistake: shown as one line, never as a traceback."""


class InputError(ValueError):
    """What the user gave is wrong; the message names the place, the rule and what to do."""
