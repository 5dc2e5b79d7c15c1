"""The one error a user meets when data or configuration is wrong."""


class DataError(Exception):
    """Bad input, named precisely: the file, the column, the key or the id, and what to do.

    Command line entries print the message without a traceback and exit with status 1.
    """
