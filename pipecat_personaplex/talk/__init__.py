"""``personaplex talk``: one model, one page, and a call for each browser that opens it.

``static`` holds the built page; its source is in ``web``.
"""
