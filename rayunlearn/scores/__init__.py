"""What can be said of a document without unlearning it: from one forward pass, from gradients, from
the corpus.
"""
