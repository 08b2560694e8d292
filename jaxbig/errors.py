"""Errors that are the user's to mend; everything else that is raised is a bug of ours or of a library.

The message of such an error is one line that says what is wrong, where, and how to mend it: the `jaxbig` command prints
exactly that line and no traceback.
"""


class UserError(Exception):
    """What was asked for cannot be done with what was given: a damaged checkpoint, a shape that does not fit.

    The `jaxbig` command ends with exit code 1.

    Example:
        >>> raise UserError("runs/a/checkpoint: no manifest; give --workdir a folder that a run has written")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: runs/a/checkpoint: no manifest; give --workdir a folder that a run has written
    """


class UsageError(UserError):
    """What was asked for makes no sense as it was written: an unknown option, a pattern that matches nothing.

    It is a `UserError` too, so `except UserError` catches both. The `jaxbig` command ends with exit code 2.

    Example:
        >>> try:
        ...     raise UsageError("unknown option --epoch; did you mean --epochs?")
        ... except UserError as error:
        ...     print(error)
        unknown option --epoch; did you mean --epochs?
    """
