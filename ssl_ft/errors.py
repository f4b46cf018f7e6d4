"""The one exception that means "the user can mend this"; the command turns it into a sentence and exit code 2."""


class UserError(ValueError):
    """A mistake its user can mend: says what was wrong, where, what is allowed and what to do.

    Everything else that is raised is a defect of ours and keeps its traceback.
    """
