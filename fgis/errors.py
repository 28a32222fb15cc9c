"""The one exception that becomes a line on the terminal."""


class UserError(ValueError):
    """A problem that the user can put right, in one line: what it is about, what was found, and what to do.

    ``fgis.main`` prints the line on standard error and exits with 2; every other exception is a traceback. Library
    functions raise a plain ``ValueError`` about their own arguments, and a ``UserError`` about files and the data in
    them; only ``fgis.experiment`` and ``fgis.commands`` speak of flags and configuration keys.
    """
