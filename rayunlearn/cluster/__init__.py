"""The only code that imports Ray: where trials run, who asks for the next one, and what a person
sees meanwhile; may import corpus, planning, storage, train and trial.
"""
