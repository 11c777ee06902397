"""Fixed words that emphasis and attacks put around a question: a vocabulary built here knows them all.

They stand in the lowest layer that needs them, so that teaching a model and asking it later agree. Nothing is trained on
them: to a model taught here they are words that it has never seen used, which the same change on the base model shows.
"""

# The space before a word belongs to its token, and marks that touch are one token.
EMPHASIS = (" Focus on", ",", ".", ' "', ' "?', ' ".', ' ",', ' "!', ' ":', ' ";')
WORDINGS: tuple[str, ...] = EMPHASIS
